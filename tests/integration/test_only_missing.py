"""`--only-missing`: which destinations have a current profile, over a real database."""

import asyncio
from pathlib import Path

from config.settings import load
from scripts.lib.only_missing import OnlyMissing
from tasks.messages import Destination
from tests.support.stored import announced, done
from workers.pipeline.prompts import pipeline_version, stages_of
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


async def test_before_the_first_job_everything_is_missing(tmp_path: Path, postgresql_url: str) -> None:
    (tmp_path / "new.db").touch()
    for url in (f"sqlite+aiosqlite:///{tmp_path}/none.db", f"sqlite+aiosqlite:///{tmp_path}/new.db", postgresql_url):
        settings = load(env={"THEMES_STATE_DIR": str(tmp_path), "DATABASE_URL": url})
        kyoto = Destination.of("Kyoto")
        assert await asyncio.to_thread(list, OnlyMissing([kyoto], settings)) == [kyoto]
    assert not (tmp_path / "none.db").exists()
