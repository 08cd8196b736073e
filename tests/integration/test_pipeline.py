"""One destination through the graph, against the sandbox over HTTP."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from config.settings import Settings
from tasks.errors import ConfigError
from tasks.messages import Addition, Destination, Profile, StageRecord
from tasks.packed import unpack_profile
from tests.support.processors import processor_of
from workers.pipeline.processor import FocusedPromptProcessor, Processed
from workers.pipeline.prompts import BUILT_IN, load_stages, pipeline_version
from workers.sandbox.server import SandboxServer

MakeSettings = Callable[..., Settings]
KYOTO = Destination.of("Kyoto", "Japan")
FINDING = ["discover.adventure", "discover.culture", "discover.entertainment", "discover.food", "discover.luxury"]
THEME_FIELDS = (
    "seasonality", "traveler_types", "price_point", "confidence", "sub_themes", "nano_themes", "rationale",
    "unique_selling_points", "authenticity_score",
)  # fmt: skip


@pytest.fixture
def run(settings_for: MakeSettings) -> Callable[..., object]:
    """Make a processor for a sandbox."""

    @asynccontextmanager
    async def make(
        server: SandboxServer, prompts: Path | None = None, **env: str
    ) -> AsyncIterator[FocusedPromptProcessor]:
        settings = settings_for(
            OPENAI_BASE_URL=server.base_url,
            THEMES_MODEL="sandbox",
            THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY="0.01",
            THEMES_PERFORMANCE_OPTIMIZATION__RETRY_MAX_DELAY="0.02",
            **env,
        )
        async with processor_of(settings, prompts) as processor:
            yield processor

    return make


def _profile(outcome: Processed) -> Profile:
    assert outcome.profile is not None
    return unpack_profile(outcome.profile, "")


async def test_a_destination_takes_sixteen_calls_in_two_rounds(run) -> None:
    async with SandboxServer(latency="100ms") as server, run(server) as processor:
        outcome = await processor.process(KYOTO)
        log = server.log()
    assert outcome.usage.llm_calls == len(log) == 16
    finds = [entry for entry in log if entry["stage"].startswith("discover.")]
    others = [entry for entry in log if not entry["stage"].startswith("discover.")]
    assert (len(finds), len(others)) == (5, 11)
    # Two rounds: within each, every call starts before the first one ends.
    assert max(entry["started"] for entry in finds) < min(entry["ended"] for entry in finds)
    assert max(entry["started"] for entry in others) < min(entry["ended"] for entry in others)
    assert min(entry["started"] for entry in others) >= max(entry["ended"] for entry in finds)


async def test_only_the_stages_of_the_fields_are_asked_and_the_others_are_not_missing(
    run, sandbox: SandboxServer
) -> None:
    async with run(sandbox) as processor:
        profile = _profile(await processor.process(KYOTO, fields=("themes", "seasonality")))
    asked = sorted(entry["stage"] for entry in sandbox.log())
    assert asked == sorted([*FINDING, "analyse.seasonality"])
    assert (profile.status, profile.missing, profile.overlap_analysis) == ("ok", [], None)
    assert [record.stage for record in profile.stages] == ["analyse.seasonality", *FINDING]
    assert all(theme.seasonality and theme.price_point is None for theme in profile.themes)
    assert profile.pipeline_version == pipeline_version([one for one in load_stages() if one.name in asked])
    assert profile.quality_assessment.completeness == 1.0


async def test_a_stage_that_needs_others_takes_them_along(run, sandbox: SandboxServer, tmp_path: Path) -> None:
    folder = shutil.copytree(BUILT_IN, tmp_path / "prompts")
    head = "stage: enhance.slogan\nasks: each theme\nneeds: [analyse.pri*]\nmax_tokens: 400"
    body = "fields:\n  slogan: {type: string, maxLength: 60}"
    (folder / "enhance.slogan.md").write_text(f"---\n{head}\n{body}\n---\nFor each theme, one slogan.\n")
    async with run(sandbox, folder) as processor:
        profile = _profile(await processor.process(KYOTO, fields=("slogan",)))
    asked = sorted(entry["stage"] for entry in sandbox.log())
    assert asked == sorted([*FINDING, "analyse.price", "enhance.slogan"])
    assert all(theme.more["slogan"] for theme in profile.themes)


async def test_an_addition_asks_its_stages_about_the_themes_that_there_are(
    run, sandbox: SandboxServer, tmp_path: Path
) -> None:
    folder = shutil.copytree(BUILT_IN, tmp_path / "prompts")
    head = "stage: enhance.slogan\nasks: each theme\nneeds: [analyse.price]\nmax_tokens: 400"
    body = "fields:\n  slogan: {type: string, maxLength: 60}"
    (folder / "enhance.slogan.md").write_text(f"---\n{head}\n{body}\n---\nFor each theme, one slogan.\n")
    addition = Addition(("assess.overlap", "enhance.slogan"), (("food", "Nishiki Market"), ("culture", "Zen Gardens")))
    async with run(sandbox, folder) as processor:
        profile = _profile(await processor.process(msgspec.structs.replace(KYOTO, addition=addition)))
        gone = msgspec.structs.replace(addition, stages=("enhance.song",))
        with pytest.raises(ConfigError, match="no field 'enhance.song'"):
            await processor.process(msgspec.structs.replace(KYOTO, addition=gone))
    assert sorted(entry["stage"] for entry in sandbox.log()) == ["assess.overlap", "enhance.slogan"]
    assert [(one.id, one.category, one.name) for one in profile.themes] == [
        ("t1", "food", "Nishiki Market"), ("t2", "culture", "Zen Gardens"),
    ]  # fmt: skip
    assert all(theme.more["slogan"] for theme in profile.themes)
    assert [record.stage for record in profile.stages] == ["assess.overlap", "enhance.slogan"]


async def test_a_field_that_no_prompt_file_makes_is_an_error_that_names_those_there_are(
    run, sandbox: SandboxServer
) -> None:
    async with run(sandbox) as processor:
        with pytest.raises(ConfigError, match="no field 'prize'; known: themes, confidence, price"):
            await processor.process(KYOTO, fields=("prize",))
    assert sandbox.log() == []


async def test_every_paid_answer_reaches_the_user(run, sandbox: SandboxServer) -> None:
    async with run(sandbox) as processor:
        profile = _profile(await processor.process(KYOTO))
    assert profile.status == "ok"
    assert profile.missing == []
    assert {record.stage for record in profile.stages} == {stage.name for stage in load_stages()}
    assert all(record.status == "ok" and record.source == "called" for record in profile.stages)
    for theme in profile.themes:
        assert all(getattr(theme, name) is not None for name in THEME_FIELDS)
    assert {theme.category for theme in profile.themes} == {"culture", "food", "adventure", "entertainment", "luxury"}
    assert profile.overlap_analysis is not None
    quality = profile.quality_assessment
    assert None not in (quality.quality, quality.overall, quality.recommendations)
    assert quality.completeness == quality.coverage == 1.0
    assert profile.model == "sandbox"


async def test_any_valid_instance_of_the_schemas_makes_an_ok_profile(run) -> None:
    names = [Destination.of(f"Nowhere {number}") for number in range(6)]
    async with SandboxServer(latency="0", style="random", seed=7) as server, run(server) as processor:
        outcomes = await asyncio.gather(*(processor.process(name) for name in names))
    assert [_profile(outcome).status for outcome in outcomes] == ["ok"] * len(names)


async def test_a_failed_optional_stage_leaves_null_with_the_reason_and_invents_nothing(
    run, sandbox: SandboxServer
) -> None:
    sandbox.set_faults(["invalid=1,match=price level of a day"])
    async with run(sandbox) as processor:
        profile = _profile(await processor.process(KYOTO))
    assert profile.status == "partial"
    assert all(theme.price_point is None for theme in profile.themes)
    assert all(theme.confidence is not None for theme in profile.themes)
    (missing,) = profile.missing
    assert (missing.stage, missing.field) == ("analyse.price", "price_point")
    assert "InvalidAnswerError" in missing.reason
    assert profile.quality_assessment.completeness < 1.0


async def test_a_failed_discovery_leaves_the_other_categories(run, sandbox: SandboxServer) -> None:
    sandbox.set_faults(["400=1,match=kind **luxury**"])
    async with run(sandbox) as processor:
        profile = _profile(await processor.process(KYOTO))
    assert profile.status == "partial"
    assert {theme.category for theme in profile.themes} == {"culture", "food", "adventure", "entertainment"}
    assert [theme.id for theme in profile.themes] == [f"t{n}" for n in range(1, len(profile.themes) + 1)]
    assert profile.missing[0].stage == "discover.luxury"


async def test_a_destination_without_any_theme_is_a_failure_that_counts_its_calls(run, sandbox: SandboxServer) -> None:
    sandbox.set_faults(["503=1"])
    async with run(sandbox, THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES="1") as processor:
        outcome = await processor.process(KYOTO, attempt=2)
    assert outcome.profile is None
    assert outcome.failure is not None
    assert outcome.failure.error_class in {"EndpointAwayError", "CircuitOpenError"}
    assert outcome.failure.attempts == 2
    assert outcome.failure.stage.startswith("discover.")
    assert outcome.is_retryable
    # Five ask; then the circuit is open, and the one probe speaks for all of them.
    assert 6 <= outcome.usage.llm_calls == sandbox.stats()["requests"] <= 10


async def test_the_second_time_everything_comes_from_the_cache(run, sandbox: SandboxServer) -> None:
    async with run(sandbox) as processor:
        first = _profile(await processor.process(KYOTO))
        second = _profile(await processor.process(Destination.of("KYOTO ", "japan")))
        fresh = await processor.process(KYOTO, use_cache=False)
    assert second.usage.llm_calls == 0
    assert second.usage.cache_hits == 16
    assert second.themes == first.themes
    assert fresh.usage.llm_calls == 16


async def test_an_answer_cut_at_the_limit_is_split_and_loses_nothing(run, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for path in (Path(load_stages.__globals__["BUILT_IN"])).glob("*.md"):
        text = path.read_text()
        if path.stem == "enhance.rationale":
            text = text.replace("max_tokens: 4800", "max_tokens: 300")
        (prompts / path.name).write_text(text)
    async with SandboxServer(latency="0") as server, run(server, prompts) as processor:
        profile = _profile(await processor.process(KYOTO))
        calls = server.stats()["by_stage"]["enhance.rationale"]
    assert profile.status == "ok"
    assert all(theme.rationale for theme in profile.themes)
    assert 2 < calls < 16


async def test_smaller_batches_ask_more_often_and_give_the_same_profile(run, sandbox: SandboxServer) -> None:
    async with run(sandbox) as processor:
        whole = _profile(await processor.process(KYOTO))
    async with run(sandbox, THEMES_PERFORMANCE_OPTIMIZATION__THEME_BATCH_SIZE="8") as processor:
        outcome = await processor.process(KYOTO, use_cache=False)
    assert outcome.usage.llm_calls == 5 + 9 * -(-len(whole.themes) // 8) + 2
    assert _profile(outcome).themes == whole.themes
    env = {
        "THEMES_PERFORMANCE_OPTIMIZATION__THEME_BATCH_SIZE": "8",
        "THEMES_PERFORMANCE_OPTIMIZATION__ENABLE_INTELLIGENT_BATCHING": "false",
    }
    async with run(sandbox, **env) as processor:
        assert (await processor.process(KYOTO, use_cache=False)).usage.llm_calls == 16


async def test_an_added_stage_reaches_the_profile(run, sandbox: SandboxServer, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    for path in (Path(load_stages.__globals__["BUILT_IN"])).glob("*.md"):
        (prompts / path.name).write_text(path.read_text())
    (prompts / "enhance.slogan.md").write_text(
        "---\nstage: enhance.slogan\nasks: each theme\nmax_tokens: 2000\n"
        "fields:\n  slogan: {type: string, minLength: 1, maxLength: 60}\n---\nFind a slogan for each theme.\n"
    )
    (prompts / "assess.motto.md").write_text(
        "---\nstage: assess.motto\nasks: all themes\nmax_tokens: 200\n"
        "fields:\n  motto: {type: string, minLength: 1, maxLength: 60}\n---\nFind one motto for the set.\n"
    )
    async with run(sandbox, prompts) as processor:
        profile = _profile(await processor.process(KYOTO))
    assert profile.usage.llm_calls == 18
    assert all(theme.more["slogan"] for theme in profile.themes)
    assert profile.more["motto"]


async def test_each_stage_is_told_as_it_ends(run, sandbox: SandboxServer) -> None:
    told: list[tuple[str, int]] = []

    names: list[str] = []

    def listen(destination: Destination, record: StageRecord, count: int, found: list[str]) -> None:
        assert destination is KYOTO
        told.append((record.stage, count))
        assert len(found) <= min(count, 5)
        names.extend(found)

    async with run(sandbox) as processor:
        profile = _profile(await processor.process(KYOTO, on_stage=listen))
    assert {stage for stage, _ in told} == {stage.name for stage in load_stages()}
    assert sum(count for stage, count in told if stage.startswith("discover.")) == len(profile.themes)
    assert names
    assert set(names) <= {theme.name for theme in profile.themes}, "partial results, before the profile is there"


async def test_cancelling_a_destination_ends_its_calls(run) -> None:
    async with SandboxServer(latency="30") as server, run(server) as processor:
        task = asyncio.create_task(processor.process(KYOTO))
        async with asyncio.timeout(180):
            while server.stats()["in_flight"] < 5:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while server.stats()["in_flight"]:
                await asyncio.sleep(0.01)


async def test_a_pipeline_of_discoveries_alone_makes_profiles_too(run, sandbox: SandboxServer, tmp_path: Path) -> None:
    (tmp_path / "system.md").write_text("You find travel themes.\n")
    (tmp_path / "discover.food.md").write_text(
        "---\nstage: discover.food\nasks: new themes\ncount: [1, 2]\nmax_tokens: 300\n---\nFind themes.\n"
    )
    async with run(sandbox, tmp_path) as processor:
        profile = _profile(await processor.process(KYOTO))
    assert profile.status == "ok"
    assert 1 <= len(profile.themes) <= 2
