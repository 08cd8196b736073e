"""Fields that are added to stored profiles, as the databases keep them."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from tasks.messages import (
    JobOptions,
    JobReopened,
    Missing,
    OverlapAnalysis,
    Profile,
    QualityAssessment,
    Result,
    StageRecord,
    Theme,
    Usage,
)
from tasks.packed import pack_profile, version_of
from tests.support.stored import KYOTO, announced, done, failed, holding, profile_in
from workers.results.database.additions import CHANGED, merged
from workers.results.database.manager import AsyncDatabaseManager

ADDED = JobOptions(fields=("themes", "price", "rationale"))
CALLS = Usage(llm_calls=1, prompt_tokens=7, cost_usd=0.5)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[AsyncDatabaseManager]:
    async with AsyncDatabaseManager(database_url, pool_size=3, timeout_seconds=180.0) as manager:
        yield manager


def _record(stage: str, status: Any = "ok") -> StageRecord:
    return StageRecord(stage, status, "v1", "sandbox", "called", CALLS, 1.0)


def _themes(**more: Any) -> list[Theme]:
    return [Theme(f"t{n}", "food", f"Theme {n}", more.get("told", "Told."), [], **more.get("has", {})) for n in (1, 2)]


def _first(**more: Any) -> Result:
    fields = {"themes": _themes(has={"price_point": "mid"}), "usage": CALLS + CALLS}
    records = [_record("analyse.price"), _record("discover.food")]
    return holding(KYOTO, done(attempt=1, at=1000.0), stages=records, **fields | more)


def _addition(attempt: int = 2, at: float = 2000.0, **more: Any) -> Result:
    """What a worker hands in for `rationale`."""
    fields: dict[str, Any] = {"themes": _themes(told="", has={"rationale": "It belongs here."})}
    fields |= {"stages": [_record("enhance.rationale")], "usage": CALLS}
    made = holding(KYOTO, done(attempt=attempt, usage=CALLS, at=at), **fields | more)
    return msgspec.structs.replace(made, adds=True)


def _reopened(attempt: int = 2) -> JobReopened:
    return JobReopened("j", (KYOTO.id,), attempt, ADDED)


async def _profile(store: AsyncDatabaseManager) -> Profile:
    [row] = [row async for row in store.profiles("j")]
    return row.profile()


async def _stands(store: AsyncDatabaseManager) -> tuple[str, int, int, int]:
    job = await store.job("j")
    assert job is not None
    return job.state, job.done, job.failed, job.partial


@pytest.mark.parametrize("at_once", [True, False], ids=["one batch", "batch by batch"])
async def test_what_is_added_joins_the_stored_profile_however_often_it_comes(
    store: AsyncDatabaseManager, at_once: bool
) -> None:
    await store.apply([*announced(KYOTO), _first()])
    entries = [_reopened(), _addition(), _addition()]
    for batch in [entries] if at_once else [[one] for one in entries]:
        await store.apply(batch)
    await store.apply(entries)
    profile = await _profile(store)
    assert [(t.price_point, t.rationale, t.description) for t in profile.themes] == [
        ("mid", "It belongs here.", "Told.")
    ] * 2
    assert [record.stage for record in profile.stages] == ["analyse.price", "discover.food", "enhance.rationale"]
    assert profile.pipeline_version == version_of((r.stage, "v1") for r in profile.stages)
    assert (profile.usage.llm_calls, profile.status) == (3, "ok")
    assert await _stands(store) == ("done", 1, 0, 0)
    job = await store.job("j")
    assert job is not None
    assert job.options
    assert msgspec.json.decode(job.options, type=JobOptions) == ADDED
    assert job.usage.llm_calls == 2 + 1


@pytest.mark.parametrize("at_once", [True, False], ids=["one batch", "batch by batch"])
async def test_a_failure_leaves_the_whole_profile(store: AsyncDatabaseManager, at_once: bool) -> None:
    await store.apply([*announced(KYOTO), _first()])
    before = await _profile(store)
    entries = [_reopened(), failed(attempt=2)]
    if not at_once:
        await store.apply(entries[:1])
        assert await _stands(store) == ("running", 0, 0, 0)
        assert await _profile(store) == before, "it can be read meanwhile"
    await store.apply(entries)
    assert await _stands(store) == ("done", 1, 0, 0)
    assert await _profile(store) == before


async def test_a_profile_that_changed_meanwhile_stays_and_what_was_asked_is_booked(
    store: AsyncDatabaseManager,
) -> None:
    await store.apply([*announced(KYOTO), _first()])
    other = [msgspec.structs.replace(theme, name=f"Other {theme.id}") for theme in _themes()]
    await store.apply([_reopened(), done(attempt=2, at=1500.0)])
    applied = await store.apply([_reopened(3), _addition(3, themes=other)])
    assert (await _profile(store)).themes[0].rationale is None
    assert await _stands(store) == ("done", 1, 0, 0)
    assert applied.outcomes == []
    job = await store.job("j")
    assert job is not None
    assert job.usage.llm_calls == 2 + 2 + 1


async def test_without_a_stored_profile_it_is_a_failure_that_says_so(store: AsyncDatabaseManager) -> None:
    await store.apply([*announced(KYOTO), _addition()])
    [failure] = [row async for row in store.failures("j")]
    assert (failure.error_class, "`themes extend`" in failure.message) == (CHANGED, True)


async def test_an_addition_that_lacks_something_makes_the_profile_partial_until_it_comes(
    store: AsyncDatabaseManager,
) -> None:
    await store.apply([*announced(KYOTO), _first()])
    lacks = [Missing("enhance.rationale", "rationale", "BadRequestError: no")]
    none = {"themes": _themes(told=""), "stages": [_record("enhance.rationale", "failed")], "missing": lacks}
    await store.apply([_reopened(), _addition(status="partial", **none)])
    assert await _stands(store) == ("done", 1, 0, 1)
    assert (await _profile(store)).missing == lacks
    await store.apply([_reopened(3), _addition(3, at=3000.0)])
    profile = await _profile(store)
    assert (profile.missing, profile.status, profile.themes[1].rationale) == ([], "ok", "It belongs here.")
    assert await _stands(store) == ("done", 1, 0, 0)


def test_what_is_asked_of_the_whole_set_follows_into_its_assessment() -> None:
    one, two = (
        msgspec.structs.replace(profile_in(_first()), quality_assessment=QualityAssessment(0.9, 0.8, 1.0)),
        profile_in(_addition()),
    )
    overlap = OverlapAnalysis([["t1", "t2"]], [], [])
    added = msgspec.structs.replace(
        two,
        overlap_analysis=overlap,
        quality_assessment=QualityAssessment(0.0, 0.0, 0.7, quality=0.6, overall=0.5, recommendations=["More."]),
        more={"slogan": "Go."},
    )
    whole = merged(one, added, ("tier",))
    assert whole.pipeline_version == version_of(((r.stage, "v1") for r in whole.stages), ("tier",))
    assert whole.overlap_analysis == overlap
    assert whole.more == {"slogan": "Go."}
    assert whole.quality_assessment == QualityAssessment(0.0, 0.8, 0.9, 0.6, 0.5, ["More."])
    assert merged(whole, added) == whole
    assert pack_profile(whole).quality == 0.5
