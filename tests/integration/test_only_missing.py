"""`--only-missing`: which destinations have a current profile, over a real database."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from config.settings import load
from scripts.lib.only_missing import OnlyMissing
from tasks.messages import Destination, Result, StageRecord, Usage
from tests.support.stored import announced, done, holding, theme
from workers.pipeline.fields import stages_for
from workers.pipeline.prompts import Stage, pipeline_version, stages_of
from workers.results.database.manager import AsyncDatabaseManager


async def test_one_place_with_other_coordinates_has_its_profile_and_another_place_of_its_name_has_none(
    tmp_path: Path,
) -> None:
    settings = load(env={"THEMES_STATE_DIR": str(tmp_path)})
    # At the border of two cells: a metre to the west its id is another.
    portland = Destination.of("Portland", "United States", lat=45.52, lon=0.0)
    version = pipeline_version(stages_of(settings))
    async with AsyncDatabaseManager.from_settings(settings) as store:
        await store.apply([*announced(portland), done(portland, pipeline_version=version)])
    beside = Destination.of("portland", "United States", lat=45.52, lon=-0.00001)
    maine = Destination.of("Portland", "United States", lat=43.66, lon=-70.26)
    assert beside.id != portland.id
    missing = OnlyMissing([portland, beside, maine], settings)
    assert await asyncio.to_thread(list, missing) == [maine]
    assert missing.skipped == 2
    other = OnlyMissing([portland], settings, columns=["type"])
    assert await asyncio.to_thread(list, other) == [portland]


async def test_with_fields_a_profile_is_missing_that_has_not_all_of_them_by_today_s_prompts(tmp_path: Path) -> None:
    settings = load(env={"THEMES_STATE_DIR": str(tmp_path)})
    stages = stages_of(settings)

    def made(name: str, some: Sequence[Stage], columns: Sequence[str] = (), **odd: str) -> Result:
        records = [_record(stage, odd.get(stage.category, "ok")) for stage in some]
        return holding(
            Destination.of(name), pipeline_version=pipeline_version(some, columns), stages=records, themes=[theme(1)]
        )

    cities = {
        "Whole": made("Whole", stages),
        "Enough": made("Enough", stages_for(stages, ["price", "rationale"])),
        "Lacks another": made("Lacks another", stages, rationale="failed"),
        "Lacks it": made("Lacks it", stages, price="partial"),
        "Too few": made("Too few", stages_for(stages, ["rationale"])),
        "Other columns": made("Other columns", stages, ["type"]),
        "Other prompts": made("Other prompts", [replace(stage, instructions="Else.") for stage in stages]),
    }
    rows = [Destination.of(name) for name in cities]
    async with AsyncDatabaseManager.from_settings(settings) as store:
        await store.apply([*announced(*rows), *cities.values()])
    missing = OnlyMissing(rows, settings, fields=("themes", "price"))
    left = [one.name for one in await asyncio.to_thread(list, missing)]
    assert left == ["Lacks it", "Too few", "Other columns", "Other prompts"]


def _record(stage: Stage, status: str) -> StageRecord:
    return StageRecord(stage.name, status, stage.version, "sandbox", "called", Usage(llm_calls=1), 1.0)


async def test_before_the_first_job_everything_is_missing(tmp_path: Path, postgresql_url: str) -> None:
    (tmp_path / "new.db").touch()
    for url in (f"sqlite+aiosqlite:///{tmp_path}/none.db", f"sqlite+aiosqlite:///{tmp_path}/new.db", postgresql_url):
        settings = load(env={"THEMES_STATE_DIR": str(tmp_path), "DATABASE_URL": url})
        kyoto = Destination.of("Kyoto")
        assert await asyncio.to_thread(list, OnlyMissing([kyoto], settings)) == [kyoto]
    assert not (tmp_path / "none.db").exists()
