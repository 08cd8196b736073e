"""What the results store promises, on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zstandard import compress

from tasks.errors import DatabaseError
from tasks.messages import (
    Destination,
    JobClosed,
    JobInputs,
    JobOpened,
    JobOptions,
    JobReopened,
    Missing,
    Result,
    Seasonality,
    Spent,
    StageRecord,
    StreamEntry,
    Usage,
)
from tests.support.stored import (
    KYOTO,
    SPENT,
    announced,
    done,
    failed,
    holding,
    packed_as,
    places,
    profile_in,
    theme,
)
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import JobRow
from workers.results.database.totals import MAX_ADDED, MAX_TOTAL, ended


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[AsyncDatabaseManager]:
    async with AsyncDatabaseManager(database_url, pool_size=3, timeout_seconds=180.0) as manager:
        yield manager


async def job_of(store: AsyncDatabaseManager, job: str = "j") -> JobRow:
    found = await store.job(job)
    assert found is not None
    return found


async def counts(store: AsyncDatabaseManager) -> tuple[int, int, int, int]:
    job = await job_of(store)
    return job.done, job.failed, job.partial, job.usage.llm_calls


async def select(store: AsyncDatabaseManager, sql: str) -> list[Any]:
    async with store.reading() as connection:
        return [tuple(row) for row in await connection.exec_driver_sql(sql)]


# --- a job's life -----------------------------------------------------------------------------------------------


async def test_a_job_is_queued_then_runs_then_is_done_when_sealed_and_complete(
    store: AsyncDatabaseManager,
) -> None:
    opened, inputs, sealed = announced(*places(2))
    await store.apply([opened, inputs])
    job = await job_of(store)
    assert (job.state, job.total, job.sealed, job.started_at) == ("queued", 2, False, None)
    await store.apply([done(places(2)[0]), failed(places(2)[1])])
    assert (await job_of(store)).state == "running"
    await store.apply([sealed])
    job = await job_of(store)
    assert (job.state, job.name, job.created_at, job.total) == ("done", "a name", 900.0, 2)
    assert job.started_at == pytest.approx(1000.0 - 0.0125)
    assert job.finished_at is not None
    assert msgspec.json.decode(job.options or "", type=JobOptions) == JobOptions()


async def test_a_job_without_destinations_is_done_at_once(store: AsyncDatabaseManager) -> None:
    await store.apply(announced())
    assert (await job_of(store)).state == "done"


async def test_jobs_are_listed_newest_first(store: AsyncDatabaseManager) -> None:
    for job, at in (("a", 1.0), ("c", 3.0), ("b", 2.0)):
        await store.apply([JobOpened(job, job, at, JobOptions())])
    assert [job.job_id for job in await store.jobs()] == ["c", "b", "a"]
    assert await store.job("z") is None


def rich_profile(*, confidence: float = 0.5, **more: Any) -> Result:
    """A result with everything in it that has rows of its own."""
    full = theme(
        1,
        seasonality=Seasonality(["April", "May", "April"], ["August"]),
        traveler_types=["solo", "family"],
        price_point="mid",
        confidence=confidence,
        authenticity_score=0.25,
        sub_themes=["Noodles", "Noodles"],
        nano_themes=["Soba at noon"],
        rationale="Told by many.",
    )
    stages = [
        StageRecord("discover.food", "ok", "v1", "sandbox", "called", SPENT, 12.5),
        StageRecord("analyse.price", "partial", "v2", "sandbox", "cached", Usage(cache_hits=1), 0.5, "cut off"),
    ]
    missing = [Missing("analyse.price", "price_point", "cut off", ["t2"])]
    result = done(themes=0, **{"more": {"new": [1]}, **more})
    return holding(KYOTO, result, themes=[full, theme(2)], stages=stages, missing=missing)


async def test_a_profile_and_the_input_come_back_as_they_were(store: AsyncDatabaseManager) -> None:
    result = rich_profile()
    await store.apply([*announced(KYOTO), result])
    [row] = [r async for r in store.profiles("j")]
    assert row.profile() == profile_in(result)
    assert (row.quality, row.status, row.usage, row.created_at) == (0.8, "ok", SPENT, 1000.0)
    [place] = [r async for r in store.destinations("j")]
    assert (place.destination, place.state, place.usage, place.listed) == (KYOTO, "done", SPENT, True)


async def test_themes_seasons_travellers_subthemes_stages_and_gaps_are_rows(store: AsyncDatabaseManager) -> None:
    await store.apply([*announced(KYOTO), rich_profile()])
    assert await select(store, "SELECT * FROM themes ORDER BY rank") == [
        (1, "j", KYOTO.id, 1, "food", "Theme 1", "Told.", 0.5, "mid", 0.25),
        (2, "j", KYOTO.id, 2, "food", "Theme 2", "Told.", None, None, None),
    ]
    months = "SELECT * FROM theme_months ORDER BY theme_no, month"
    assert await select(store, months) == [(1, 4, "peak"), (1, 5, "peak"), (1, 8, "avoid")]
    travelers = "SELECT * FROM theme_travelers ORDER BY theme_no, traveler_type"
    assert await select(store, travelers) == [(1, "family"), (1, "solo")]
    assert await select(store, "SELECT * FROM theme_subthemes ORDER BY theme_no, level, position") == [
        (1, "nano", 1, "Soba at noon"), (1, "sub", 1, "Noodles"), (1, "sub", 2, "Noodles"),
    ]  # fmt: skip
    assert await select(store, "SELECT * FROM stages ORDER BY stage") == [
        (1, "analyse.price", "partial", "v2", "sandbox", "cached", 0, 1, 0, 0, 0.0, 0.5, "cut off"),
        (1, "discover.food", "ok", "v1", "sandbox", "called", 2, 1, 100, 50, 0.25, 12.5, None),
    ]
    assert await select(store, "SELECT * FROM missing") == [
        (1, 1, "analyse.price", "price_point", "cut off", '["t2"]'),
    ]


async def test_a_newer_profile_keeps_its_number_and_takes_the_place_of_all_rows(store: AsyncDatabaseManager) -> None:
    town = places(1)[0]
    await store.apply([*announced(KYOTO, town), rich_profile(), done(town)])
    await store.apply([done(attempt=1, themes=1)])
    numbers = "SELECT profile_no, destination_id, attempt FROM profiles ORDER BY profile_no"
    assert await select(store, numbers) == [(1, KYOTO.id, 1), (2, town.id, 0)]
    for table in ("theme_months", "theme_travelers", "theme_subthemes", "stages", "missing"):
        assert await select(store, f"SELECT count(*) FROM {table}") == [(0,)], table  # noqa: S608
    assert await select(store, "SELECT name, rank FROM themes ORDER BY theme_no DESC LIMIT 1") == [("Theme 0", 1)]
    await store.apply([failed(attempt=2)])
    assert await select(store, "SELECT count(*) FROM themes") == [(2,)]


async def test_views_answer_what_users_ask(store: AsyncDatabaseManager) -> None:
    osaka = Destination.of("Osaka", "Japan")
    other = msgspec.structs.replace(done(osaka, themes=2), at=2000.0)
    again = done(job="k", at=3000.0, themes=1)
    await store.apply([*announced(KYOTO, osaka), rich_profile(), other, *announced(KYOTO, job="k"), again])
    newest = "SELECT name, job_id FROM newest_profiles ORDER BY name"
    assert await select(store, newest) == [("Kyoto", "k"), ("Osaka", "j")]
    by_theme = "SELECT destination FROM destinations_by_theme WHERE theme = 'Theme 0' ORDER BY destination"
    assert await select(store, by_theme) == [("Kyoto",), ("Osaka",)]
    in_may = "SELECT destination, themes, confidence FROM destinations_by_month WHERE month = 5 AND season = 'peak'"
    assert await select(store, in_may) == [], "Kyoto's newest profile says nothing of May"
    top = "SELECT theme, destinations, place FROM top_themes_by_country WHERE country = 'Japan' AND place = 1"
    assert await select(store, top) == [("Theme 0", 2, 1)]
    made = "SELECT stage, source FROM provenance WHERE destination = 'Kyoto' ORDER BY stage"
    assert await select(store, made) == [("analyse.price", "cached"), ("discover.food", "called")]
    costs = "SELECT stage, profiles, not_ok, cached FROM stage_costs WHERE job_id = 'j' ORDER BY stage"
    assert await select(store, costs) == [("analyse.price", 1, 1, 1), ("discover.food", 1, 0, 0)]
    assert await select(store, "SELECT field, reason, profiles FROM gaps") == [("price_point", "cut off", 1)]


async def test_views_count_a_destination_once_however_many_jobs_have_it(store: AsyncDatabaseManager) -> None:
    for number, job in enumerate("abc"):
        made = rich_profile(job=job, at=1000.0 + number, confidence=0.5 + number / 10)
        await store.apply([*announced(KYOTO, job=job), made])
    # Made at the same time in two jobs: one of them is the newest.
    await store.apply([*announced(KYOTO, job="d"), rich_profile(job="d", at=1002.0, confidence=0.8)])
    in_may = "SELECT destination, themes, confidence, job_id FROM destinations_by_month WHERE month = 5"
    assert await select(store, in_may) == [("Kyoto", 1, 0.8, "d")]
    by_theme = "SELECT destination, confidence, job_id FROM destinations_by_theme WHERE theme = 'Theme 1'"
    assert await select(store, by_theme) == [("Kyoto", 0.8, "d")]
    top = "SELECT destinations, confidence FROM top_themes_by_country WHERE theme = 'Theme 1'"
    assert await select(store, top) == [(1, 0.8)]


async def test_readers_page_through_a_large_job_in_the_order_of_its_input(
    store: AsyncDatabaseManager,
) -> None:
    towns = places(1201)
    await store.apply(announced(*towns))
    await store.apply([done(t) for t in reversed(towns[:1100])])
    await store.apply([failed(t) for t in towns[1100:1150]])
    assert [r.destination_id async for r in store.profiles("j")] == [t.id for t in towns[:1100]]
    assert [r.destination_id async for r in store.failures("j")] == [t.id for t in towns[1100:1150]]
    assert [r.destination async for r in store.missing("j")] == towns[1150:]
    assert len([r async for r in store.destinations("j")]) == 1201


async def test_what_is_missing_is_read_piece_by_piece_and_what_is_listed_later_comes_later(
    store: AsyncDatabaseManager,
) -> None:
    towns = places(30)
    await store.apply(announced(*towns[:20]))
    first, place = await store.missing_after("j", -1, 15)
    assert first == towns[:15]
    await store.apply([done(towns[16]), JobInputs("j", tuple(towns[20:])), JobInputs("other", tuple(places(3)))])
    rest, last = await store.missing_after("j", place, 100)
    assert rest == [towns[15], *towns[17:]]
    assert await store.missing_after("j", last, 100) == ([], last)


# --- attempts ---------------------------------------------------------------------------------------------------


async def test_a_newer_attempt_wins_an_older_one_does_not_and_both_were_paid_for(
    store: AsyncDatabaseManager,
) -> None:
    await store.apply([*announced(KYOTO), done(attempt=1, model="new", themes=3)])
    await store.apply([done(attempt=0, model="old", themes=5)])
    [row] = [r async for r in store.profiles("j")]
    assert (row.model, row.attempt) == ("new", 1)
    assert await select(store, "SELECT count(*) FROM themes") == [(3,)]
    assert await counts(store) == (1, 0, 0, 4)


async def test_of_equal_attempts_the_later_one_is_kept_but_no_failure_replaces_a_profile(
    store: AsyncDatabaseManager,
) -> None:
    await store.apply([*announced(KYOTO), done(model="first", themes=5)])
    await store.apply([done(model="second", worker="other", themes=1)])
    await store.apply([failed(worker="third")])
    [row] = [r async for r in store.profiles("j")]
    assert row.model == "second"
    assert await select(store, "SELECT count(*) FROM themes") == [(1,)]
    assert await counts(store) == (1, 0, 0, 6)


async def test_an_older_failure_never_replaces_a_profile(store: AsyncDatabaseManager) -> None:
    await store.apply([*announced(KYOTO), done(attempt=1), failed(attempt=0)])
    assert await counts(store) == (1, 0, 0, 4)
    assert [r async for r in store.failures("j")] == []


async def test_a_profile_takes_the_place_of_an_earlier_failure_and_keeps_its_cost(
    store: AsyncDatabaseManager,
) -> None:
    await store.apply([*announced(KYOTO), failed()])
    [failure] = [r async for r in store.failures("j")]
    assert (failure.name, failure.stage, failure.error_class) == (
        "Kyoto",
        "discover.food",
        "RateLimitedError",
    )
    await store.apply([done(attempt=1, partial=True)])
    assert await counts(store) == (1, 0, 1, 4)
    assert [r async for r in store.failures("j")] == []


async def test_a_newer_failure_takes_the_place_of_an_older_profile_and_its_themes(
    store: AsyncDatabaseManager,
) -> None:
    await store.apply([*announced(KYOTO), done(partial=True), failed(attempt=1)])
    assert await counts(store) == (0, 1, 0, 4)
    assert await select(store, "SELECT (SELECT count(*) FROM profiles), (SELECT count(*) FROM themes)") == [(0, 0)]


async def test_the_same_entries_twice_change_nothing_and_are_shown_again(store: AsyncDatabaseManager) -> None:
    entries = [*announced(*places(2)), done(places(2)[0]), failed(places(2)[1])]
    first = await store.apply(entries)
    queries = ["SELECT * FROM themes", "SELECT * FROM failures", "SELECT * FROM attempts"]
    before = [await select(store, query) for query in queries]
    job = await job_of(store)
    second = await store.apply([*entries, *entries])
    assert [await select(store, query) for query in queries] == before
    assert msgspec.structs.asdict(job.usage) == msgspec.structs.asdict((await job_of(store)).usage)
    assert (await job_of(store)).finished_at == job.finished_at
    assert second.outcomes == first.outcomes
    assert second.jobs["j"].revision > first.jobs["j"].revision


async def test_an_attempt_that_two_workers_made_was_paid_for_twice(store: AsyncDatabaseManager) -> None:
    await store.apply([*announced(KYOTO), done(worker="a"), done(worker="b"), done(worker="a")])
    assert await counts(store) == (1, 0, 0, 4)


async def test_a_row_keeps_the_time_it_was_made(store: AsyncDatabaseManager) -> None:
    await store.apply([*announced(KYOTO), done(at=1000.0)])
    made = await select(store, "SELECT created_at FROM destinations")
    await store.apply([done(attempt=1, at=2000.0), JobOpened("j", "renamed", 5.0, JobOptions())])
    [row] = [r async for r in store.profiles("j")]
    assert (row.created_at, row.attempt) == (1000.0, 1)
    assert await select(store, "SELECT created_at FROM destinations") == made
    assert ((await job_of(store)).name, (await job_of(store)).created_at) == ("a name", 900.0)


async def test_an_unknown_price_makes_the_cost_unknown_not_zero(store: AsyncDatabaseManager) -> None:
    towns = places(3)
    unknown = Usage(llm_calls=1, cost_usd=None)
    await store.apply([*announced(*towns), done(towns[0]), done(towns[1], usage=unknown), done(towns[2])])
    job = await job_of(store)
    assert job.usage.cost_usd is None
    assert job.usage.llm_calls == 5
    assert await select(store, "SELECT cost_usd FROM destinations ORDER BY rowid") == [(0.25,), (None,), (0.25,)]


# --- the order of the stream is not trusted -----------------------------------------------------------------------


async def test_results_without_their_job_or_input_are_stored_and_filled_in_later(
    store: AsyncDatabaseManager,
) -> None:
    other = places(1)[0]
    await store.apply([done(), failed(other)])
    names = await select(store, "SELECT name, country, listed FROM destinations ORDER BY rowid")
    assert names == [("Kyoto", "Japan", 0), (other.id, None, 0)]
    await store.apply(announced(KYOTO, other))
    assert [r.destination async for r in store.destinations("j")] == [KYOTO, other]
    job = await job_of(store)
    assert (job.name, job.created_at, job.state, job.done, job.failed) == ("a name", 900.0, "done", 1, 1)


async def test_an_input_that_comes_again_in_another_spelling_keeps_the_first(
    store: AsyncDatabaseManager,
) -> None:
    await store.apply(announced(KYOTO))
    await store.apply([JobInputs("j", (Destination.of("KYOTO", "japan", region="kansai", lat=35.0, lon=135.75),))])
    assert [r.destination async for r in store.destinations("j")] == [KYOTO]


async def test_what_has_a_complete_profile_by_todays_prompts_is_known_over_all_jobs(
    store: AsyncDatabaseManager,
) -> None:
    towns = places(4)
    await store.apply([*announced(*towns), done(towns[0]), failed(towns[1]), done(towns[2], partial=True)])
    await store.apply([*announced(towns[3], job="other"), done(towns[3], job="other")])
    ids = [town.id for town in towns]
    (profile, *_) = [row async for row in store.profiles("j")]
    assert await store.current(ids, profile.pipeline_version) == {towns[0].id, towns[3].id}
    assert await store.current(ids[1:3], profile.pipeline_version) == set()
    assert await store.current(ids, "another version") == set()
    assert await store.last_attempt("j") == 0
    assert [row.destination async for row in store.failed("j")] == [towns[1]]
    assert [row.destination async for row in store.failed("j", "NoSuchError")] == []


async def test_what_a_stopped_destination_has_cost_is_booked_once_and_changes_nothing_else(
    store: AsyncDatabaseManager,
) -> None:
    towns = places(2)
    spent = Spent("j", towns[0].id, 1, Usage(llm_calls=3, cost_usd=0.5), "w", 1000.0, 5.0)
    await store.apply([*announced(*towns), spent, spent])
    await store.apply([spent])
    job = await job_of(store)
    assert (job.state, job.done, job.failed, job.usage.llm_calls) == ("running", 0, 0, 3)
    assert len([row async for row in store.missing("j")]) == 2
    result = msgspec.structs.replace(done(towns[0], attempt=1), worker="w", at=1000.0, usage=spent.usage)
    await store.apply([result])
    assert (await job_of(store)).usage.llm_calls == 3, "the same run, told in another way"
    assert (await job_of(store)).done == 1


# --- retry and cancel ---------------------------------------------------------------------------------------------


async def test_a_reopened_job_waits_for_its_failed_ones_only_and_a_late_old_failure_does_not_end_it(
    store: AsyncDatabaseManager,
) -> None:
    towns = places(2)
    ids = tuple(t.id for t in towns)
    await store.apply([*announced(*towns), done(towns[0]), failed(towns[1])])
    await store.apply([JobReopened("j", ids, 1), failed(towns[1], worker="late")])
    job = await job_of(store)
    assert (job.state, job.done, job.failed, job.finished_at) == ("running", 1, 0, None)
    assert [r.destination async for r in store.missing("j")] == [towns[1]]
    await store.apply([failed(towns[1], attempt=1), JobReopened("j", ids, 1)])
    job = await job_of(store)
    assert (job.state, job.done, job.failed) == ("done", 1, 1)


async def test_a_cancelled_job_keeps_counting_what_arrives_and_can_be_reopened(
    store: AsyncDatabaseManager,
) -> None:
    towns = places(3)
    await store.apply([*announced(*towns), done(towns[0]), JobClosed("j", "cancelled", 2000.0), done(towns[1])])
    job = await job_of(store)
    assert (job.state, job.done, job.finished_at) == ("cancelled", 2, 2000.0)
    await store.apply([JobReopened("j", (towns[2].id,), 1), done(towns[2], attempt=1)])
    assert (await job_of(store)).state == "done"


# --- the sums always agree ----------------------------------------------------------------------------------------

IDS = st.integers(0, 2)
USAGES = st.builds(Usage, llm_calls=st.integers(0, 5), cost_usd=st.sampled_from([0.0, 0.25, None]))


@st.composite
def streams(draw: st.DrawFn) -> list[list[StreamEntry]]:
    """Batches of results of a job of three, some of them delivered again, in any order."""
    towns = places(3)
    results = draw(
        st.lists(
            st.builds(
                lambda n, good, attempt, usage, worker, partial: (
                    done(towns[n], attempt=attempt, usage=usage, worker=worker, partial=partial)
                    if good
                    else failed(towns[n], attempt=attempt, usage=usage, worker=worker)
                ),
                IDS,
                st.booleans(),
                st.integers(0, 3),
                USAGES,
                st.sampled_from(["a", "b"]),
                st.booleans(),
            ),
            max_size=12,
            # One run has one outcome, however often it is delivered.
            unique_by=lambda r: (r.destination_id, r.attempt, r.worker),
        )
    )
    again = draw(st.lists(st.sampled_from(results), max_size=6)) if results else []
    entries = draw(st.permutations([*announced(*towns), *results, *again]))
    cuts = sorted(draw(st.lists(st.integers(0, len(entries)), max_size=4)))
    bounds = [0, *cuts, len(entries)]
    return [entries[a:b] for a, b in pairwise(bounds)]


def expected(entries: list[StreamEntry]) -> tuple[dict[str, tuple[str, int]], list[Usage]]:
    """The plain model: state and attempt of each destination, and the usage of each distinct run."""
    states: dict[str, tuple[str, int]] = {}
    runs: dict[tuple[str, int, str], Usage] = {}
    for entry in entries:
        if not isinstance(entry, Result):
            continue
        state, attempt = states.get(entry.destination_id, ("queued", -1))
        new = "failed" if entry.profile is None else entry.profile.status
        keeps = attempt == entry.attempt and new == "failed" and state in {"ok", "partial"}
        if entry.attempt >= attempt and not keeps:
            states[entry.destination_id] = (new, entry.attempt)
        runs[entry.destination_id, entry.attempt, entry.worker] = entry.usage
    return states, list(runs.values())


@given(streams())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_arrives_in_whatever_order_the_totals_equal_the_sums_and_the_model(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[StreamEntry]]
) -> None:
    async def run() -> None:
        folder = tmp_path_factory.mktemp("sums")
        async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{folder / 'themes.db'}") as store:
            for batch in batches:
                await store.apply(batch)
            await _compare(store, [entry for batch in batches for entry in batch])

    asyncio.run(run())


async def _compare(store: AsyncDatabaseManager, entries: list[StreamEntry]) -> None:
    states, runs = expected(entries)
    job = await job_of(store)
    kinds = [state for state, _ in states.values()]
    good = kinds.count("ok") + kinds.count("partial")
    assert (job.done, job.failed, job.partial) == (good, kinds.count("failed"), kinds.count("partial"))
    assert job.state == ("done" if len(states) == 3 else "running" if states else "queued")
    total = sum(runs, Usage())
    assert job.usage == total
    rows = [r async for r in store.destinations("j")]
    assert sum((r.usage for r in rows), Usage()) == total
    totals = await store.totals()
    assert (totals["runs"], totals["llm_calls"]) == (len(runs), total.llm_calls)
    assert totals["cost_nano_usd"] == sum(round((run.cost_usd or 0) * 1e9) for run in runs)
    assert totals["unpriced_calls"] == sum(run.llm_calls for run in runs if run.cost_usd is None)
    ends = {(e.destination_id, e.attempt, e.worker): ended(e) for e in entries if isinstance(e, Result)}
    names = ("destinations_ok", "destinations_partial", "destinations_failed")
    assert [totals[name] for name in names] == [list(ends.values()).count(end) for end in ("ok", "partial", "failed")]
    assert {r.destination.id: r.attempt for r in rows if r.state != "queued"} == {
        key: attempt for key, (_, attempt) in states.items()
    }
    assert {r.destination_id: r.status async for r in store.profiles("j")} == {
        key: state for key, (state, _) in states.items() if state != "failed"
    }
    assert {r.destination_id async for r in store.failures("j")} == {
        key for key, (state, _) in states.items() if state == "failed"
    }


async def test_totals_count_over_all_jobs_and_only_rise(store: AsyncDatabaseManager) -> None:
    first = await store.apply([*announced(KYOTO), done()])
    assert first.totals["llm_calls"] == SPENT.llm_calls
    assert first.totals["saved_nano_usd"] == 0
    again = await store.apply([done()])
    assert again.totals == {}
    lost = Spent("k", KYOTO.id, 1, Usage(llm_calls=3, cost_usd=None), "w", 5.0, 1.0, lost=True)
    second = await store.apply([lost, done(KYOTO, job="k", attempt=2)])
    assert second.totals == await store.totals()
    changed = {name: value - first.totals[name] for name, value in second.totals.items() if value != first.totals[name]}
    assert changed == {
        "llm_calls": 5, "unpriced_calls": 3, "cache_hits": 1, "coalesced": 1, "prompt_tokens": 100,
        "completion_tokens": 50, "cost_nano_usd": 250_000_000, "runs": 2, "lost_runs": 1, "destinations_ok": 1,
    }  # fmt: skip
    assert await select(store, "SELECT outcome FROM attempts WHERE job_id = 'k' ORDER BY attempt") == [
        ("lost",), ("ok",),
    ]  # fmt: skip


async def test_what_garbage_claims_to_have_cost_cannot_overflow_a_total(store: AsyncDatabaseManager) -> None:
    odd = Usage(llm_calls=-5, prompt_tokens=2**62, cost_usd=float("inf"))
    for number in range(3):
        await store.apply([Spent(f"j{number}", "d", 0, odd, "w", 1.0, 1.0)])
    totals = await store.totals()
    assert (totals["llm_calls"], totals["prompt_tokens"]) == (0, 3 * MAX_ADDED)
    assert totals["cost_nano_usd"] == 0
    async with store.writing() as connection:
        full = f"UPDATE counters SET value = {MAX_TOTAL + 1} WHERE name = 'prompt_tokens'"  # noqa: S608 - a number
        await connection.exec_driver_sql(full)
    await store.apply([Spent("k", "d", 0, odd, "w", 1.0, 1.0)])
    assert (await store.totals())["prompt_tokens"] == MAX_TOTAL + 1


# --- bad rows -----------------------------------------------------------------------------------------------------


TOWN = places(3)[1]
WHOLE = done(TOWN)
#: Results that a database refuses, and the field that the failure names.
REFUSED: list[tuple[Result, str]] = [
    (msgspec.structs.replace(WHOLE, usage=Usage(prompt_tokens=2**70)), "usage.prompt_tokens"),
    (msgspec.structs.replace(WHOLE, usage=Usage(llm_calls=-1)), "usage.llm_calls is -1"),
    (msgspec.structs.replace(WHOLE, usage=Usage(llm_calls=2, cost_usd=float("nan"))), "usage.cost_usd is nan"),
    (msgspec.structs.replace(WHOLE, usage=Usage(saved_usd=float("inf"))), "usage.saved_usd is inf"),
    (msgspec.structs.replace(WHOLE, at=float("nan")), "at is nan"),
    (packed_as(WHOLE, usage=Usage(llm_calls=2**63)), "profile.usage.llm_calls"),
    (packed_as(WHOLE, elapsed_ms=float("nan")), "profile.elapsed_ms is nan"),
    (packed_as(WHOLE, quality=float("inf")), "profile.quality is inf"),
    (packed_as(WHOLE, body=b"no frame"), "not zstd"),
    (packed_as(WHOLE, body=compress(b"{}")), "missing required field `themes`"),
    (packed_as(WHOLE, body=compress(b"\xff")), "not a packed profile"),
    (packed_as(WHOLE, theme_count=3), "theme_count, lacking and quality are (3, 0, 0.8), and it has (2, 0, 0.8)"),
    (packed_as(WHOLE, stages="[[]]"), "not a packed profile"),
    (packed_as(WHOLE, usage=Usage(llm_calls=-5)), "its usage have an amount below 0"),
    (packed_as(WHOLE, missing="nothing"), "not a packed profile"),
    (msgspec.structs.replace(WHOLE, profile=None), "a result is either a profile or a failure"),
    (msgspec.structs.replace(WHOLE, failure=failed().failure), "a result is either a profile or a failure"),
    (msgspec.structs.replace(WHOLE, worker="w\ud800"), "worker holds a lone surrogate"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "why"), REFUSED, ids=[f"{number} {why}" for number, (_, why) in enumerate(REFUSED)])
async def test_a_result_that_the_database_refuses_ends_its_destination_as_a_failure_that_names_the_field(
    store: AsyncDatabaseManager, bad: Result, why: str
) -> None:
    towns = places(3)
    applied = await store.apply([*announced(*towns), done(towns[0]), bad, failed(towns[2])])
    assert [(r.index, r.entry) for r in applied.rejected] == [(4, bad)]
    assert why in applied.rejected[0].reason
    job = await job_of(store)
    assert (job.state, job.done, job.failed) == ("done", 1, 2)
    (failure,) = [f async for f in store.failures("j") if f.destination_id == towns[1].id]
    assert (failure.stage, failure.error_class) == ("store", "UnusableEntryError")
    assert failure.message.startswith("its result cannot be stored: ")
    assert why in failure.message
    assert [o.result.destination_id for o in applied.outcomes] == [town.id for town in towns]
    runs = await rows(store, "SELECT count(*), sum(llm_calls) FROM attempts WHERE job_id = 'j'")
    calls = max(0, bad.usage.llm_calls)
    assert runs == [(3, 2 * SPENT.llm_calls + calls)], "its calls are booked"
    assert (store.stats().rejected, store.stats().batches) == (1, 1)
    again = await store.apply([msgspec.structs.replace(done(towns[1]), attempt=1)])
    assert (again.jobs["j"].done, again.jobs["j"].failed) == (2, 1), "a retry takes its place"


async def rows(store: AsyncDatabaseManager, sql: str) -> list[tuple[Any, ...]]:
    async with store.reading() as connection:
        return [tuple(row) for row in await connection.exec_driver_sql(sql)]


async def test_a_failure_that_cannot_be_stored_as_it_is_keeps_its_reason(store: AsyncDatabaseManager) -> None:
    town, other = places(2)
    huge = failed(
        town, usage=Usage(llm_calls=3, completion_tokens=2**64, cost_usd=float("nan")), message="\0 re\ud800fused"
    )
    await store.apply([*announced(town, other), huge, failed(other, message="half a \ud83d pair \x1b[2J")])
    found = {f.destination_id: f async for f in store.failures("j")}
    assert found[town.id].error_class == found[other.id].error_class == "RateLimitedError"
    assert found[town.id].message.startswith("re\ufffdfused (usage.completion_tokens")
    assert found[other.id].message == "half a \ufffd pair [2J"
    assert (await job_of(store)).state == "done"
    assert await rows(store, "SELECT llm_calls, completion_tokens, cost_usd FROM attempts ORDER BY llm_calls DESC") == [
        (3, 0, None), (2, 50, 0.25),
    ]  # fmt: skip


async def test_what_was_spent_without_an_outcome_is_booked_with_amounts_that_can_be_stored(
    store: AsyncDatabaseManager,
) -> None:
    town = places(1)[0]
    odd = Spent("j", town.id, 1, Usage(llm_calls=3, prompt_tokens=2**63, cost_usd=float("inf")), "w", 1.0, 1.0)
    applied = await store.apply([*announced(town), odd, done(town)])
    assert [r.reason for r in applied.rejected] == ["usage.prompt_tokens is a whole number beyond 64 bits"]
    assert (await job_of(store)).usage.llm_calls == 3 + SPENT.llm_calls
    assert (await job_of(store)).state == "done"


async def test_sums_beyond_64_bits_stay_at_the_largest_number_and_cost_no_destination(
    store: AsyncDatabaseManager,
) -> None:
    towns = places(2)
    most = Usage(prompt_tokens=2**63 - 1)
    applied = await store.apply([*announced(*towns), done(towns[0], usage=most), done(towns[1], usage=SPENT)])
    assert applied.rejected == []
    job = await job_of(store)
    assert (job.state, job.done, job.usage.prompt_tokens) == ("done", 2, 2**63 - 1)


async def test_destinations_that_cannot_be_listed_as_they_are_written_are_listed_cleaned(
    store: AsyncDatabaseManager,
) -> None:
    bad = Destination(
        "id1", "Ber\0lin\ud800\n", "Ger\x1b[2Jmany", lat=float("nan"), lon=2.0, extra={"ti\ter\0": "1\x9f2"}
    )
    large = Destination("id2", "x" * 70_000, "y\ud800" * 9_000)
    town = places(1)[0]
    applied = await store.apply([*announced(town, bad, large), done(town), done(bad), done(large)])
    found = [row.destination async for row in store.destinations("j")]
    assert [each.id for each in found] == [town.id, "id1", "id2"]
    assert (found[1].name, found[1].country, found[1].lon) == ("Berlin\ufffd", "Ger[2Jmany", 2.0)
    assert found[1].extra == {"ti er": "12"}
    assert found[2].name.startswith("xxx")
    assert applied.jobs["j"].state == "done", applied.rejected


async def test_an_id_with_a_character_that_no_database_keeps_is_counted_once(store: AsyncDatabaseManager) -> None:
    """SQLite ends a text of JSON there: such a run was found at no delivery."""
    bad = msgspec.structs.replace(failed(TOWN), destination_id="x\0y")
    await store.apply(announced(TOWN))
    for _ in range(3):
        applied = await store.apply([bad])
        assert "U+0000" in applied.rejected[0].reason
    job = await job_of(store)
    assert (job.failed, job.usage.llm_calls) == (1, SPENT.llm_calls)
    assert await rows(store, "SELECT count(*) FROM attempts") == [(1,)]


@pytest.mark.parametrize("entry", announced(TOWN, job="j\0k"))
async def test_an_entry_of_a_job_with_such_an_id_is_refused_by_name(
    store: AsyncDatabaseManager, entry: StreamEntry
) -> None:
    applied = await store.apply([*announced(TOWN), entry])
    assert ["U+0000" in each.reason for each in applied.rejected] == [True]
    assert (await job_of(store)).total == 1


async def test_columns_of_an_unlisted_destination_are_cleaned(store: AsyncDatabaseManager) -> None:
    town = Destination.of("Kyoto", extra={"a": "b"})
    await store.apply([packed_as(done(town), extra={"a": "x\0\x1b[2J"})])
    (found,) = [row.destination async for row in store.destinations("j")]
    assert found.extra == {"a": "x[2J"}


async def test_control_characters_reach_no_row(store: AsyncDatabaseManager) -> None:
    """PostgreSQL refuses U+0000; SQLite kept it, and CSV and table got it raw."""
    bad = "a\0b\x1b]0;c\x07d\x7fe\x9bf\r\x08"
    town = Destination.of("Kyoto", "Japan", extra={"k": bad})
    profile = holding(town, themes=[theme(0, sub_themes=[bad], more={bad: bad}), theme(1)], model=bad)
    opened = JobOpened("j", f"a {bad}\nname", 900.0, JobOptions())
    applied = await store.apply([opened, *announced(town)[1:], profile])
    assert applied.rejected == []
    (row,) = [each async for each in store.profiles("j")]
    clean = "ab]0;cdef"
    assert (row.model, row.profile().themes[0].sub_themes, row.profile().extra) == (clean, [clean], {"k": clean})
    assert row.profile().themes[0].more == {clean: clean}
    assert applied.outcomes[0].result.profile
    assert applied.outcomes[0].result.profile.model == clean, "what is announced is what is stored"
    assert await rows(store, "SELECT name FROM theme_subthemes") == [(clean,)]
    assert (await job_of(store)).name == f"a {clean} name"
    kept = holding(town, model="tab\tand\nnewline, caf\u00e9 \\u0000")
    await store.apply([msgspec.structs.replace(kept, attempt=1)])
    assert [each.model async for each in store.profiles("j")] == ["tab\tand\nnewline, caf\u00e9 \\u0000"]


async def test_an_error_of_any_class_for_one_row_fails_that_row(
    store: AsyncDatabaseManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    towns = places(3)
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    odd = packed_as(done(towns[1]), extra={"deep": deep})
    wrong = packed_as(done(towns[2]), quality=object())
    applied = await store.apply([*announced(*towns), done(towns[0]), odd, wrong])
    assert [r.index for r in applied.rejected] == [4, 5]
    job = await job_of(store)
    assert (job.state, job.done, job.failed) == ("done", 1, 2)


async def test_a_database_that_takes_nothing_is_an_error_and_no_failure_of_destinations(
    store: AsyncDatabaseManager,
) -> None:
    town = places(1)[0]
    await store.apply(announced(town))
    async with store.writing() as connection:
        await connection.exec_driver_sql("DROP TABLE attempts")
    with pytest.raises(DatabaseError):
        await store.apply([done(town)])
    assert [r.destination async for r in store.missing("j")] == [town]


# --- partial profiles that are asked again ------------------------------------------------------------------------


def lacking(*stages: str, attempt: int = 1, themes: int = 2, **more: Any) -> Result:
    """A result for TOWN whose profile lacks something of these stages; a whole one where there are none."""
    missing = [Missing(stage, field, "BadRequestError: 400") for stage in stages for field in ("a", "b")]
    status = "partial" if stages else "ok"
    result = holding(TOWN, missing=missing, status=status, themes=[theme(n) for n in range(themes)], **more)
    return msgspec.structs.replace(result, attempt=attempt, worker=f"w{attempt}", at=1000.0 + attempt)


def attempted(attempt: int) -> Result:
    return failed(TOWN, attempt=attempt, worker=f"w{attempt}", at=1000.0 + attempt)


#: What a partial profile that lacks two stages of 3 themes is asked again for, and the attempt whose profile stays.
RETRIED: dict[str, tuple[Result, int, str]] = {
    "a failure": (attempted(2), 1, "partial"),
    "a whole one": (lacking(attempt=2), 2, "ok"),
    "a better one": (lacking("x", attempt=2), 2, "partial"),
    "one as good": (lacking("x", "z", attempt=2, themes=3), 2, "partial"),
    "one with fewer themes": (lacking("x", "y", attempt=2), 1, "partial"),
    "a worse one": (lacking("x", "y", "z", attempt=2, themes=9), 1, "partial"),
    "one that cannot be stored": (packed_as(lacking(attempt=2), body=b""), 1, "partial"),
}


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "in one batch"])
@pytest.mark.parametrize("name", RETRIED)
async def test_a_partial_profile_stays_until_a_better_one_comes(
    store: AsyncDatabaseManager, name: str, together: bool
) -> None:
    result, attempt, status = RETRIED[name]
    towns = places(3)
    first: list[StreamEntry] = [*announced(*towns), done(towns[0]), lacking("x", "y", themes=3), failed(towns[2])]
    again = JobReopened("j", (towns[0].id, TOWN.id), 2)
    if together:
        await store.apply([*first, again, result])
    else:
        await store.apply(first)
        await store.apply([again])
        job = await job_of(store)
        assert (job.state, job.done, job.failed, job.partial) == ("running", 1, 1, 0)
        assert [row.destination async for row in store.missing("j")] == [TOWN]
        assert [row.attempt async for row in store.profiles("j")] == [0, 1], "it is shown meanwhile"
        await store.apply([again])
        await store.apply([result])
    for entries in ([], [result], [again, result], [lacking("x", "y", themes=3)], [again, attempted(2)]):
        await store.apply(entries)
        job = await job_of(store)
        assert (job.state, job.done, job.failed, job.partial) == ("done", 2, 1, int(status == "partial")), entries
        (row,) = [row async for row in store.profiles("j") if row.destination_id == TOWN.id]
        assert (row.attempt, row.status) == (attempt, status), entries
        assert [f.destination_id async for f in store.failures("j")] == [towns[2].id]
        states = await rows(store, "SELECT state, partial, attempt FROM destinations ORDER BY name")
        assert states[1] == ("done", int(status == "partial"), 2)
        assert await rows(store, "SELECT count(*) FROM themes") == [(2 + len(row.profile().themes),)]
    runs = await rows(store, "SELECT count(*) FROM attempts WHERE worker LIKE 'w_'")
    assert runs[0][0] >= 2, "what the second attempt has cost is in the books"


async def test_a_partial_profile_that_fails_again_and_again_is_whole_in_the_end(store: AsyncDatabaseManager) -> None:
    await store.apply([*announced(TOWN), lacking("x")])
    for attempt in (2, 4, 6):
        await store.apply([JobReopened("j", (TOWN.id,), attempt)])
        await store.apply([attempted(attempt)])
        await store.apply([JobReopened("j", (TOWN.id,), attempt + 1), attempted(attempt + 1)])
    assert [row.status async for row in store.profiles("j")] == ["partial"]
    await store.apply([JobReopened("j", (TOWN.id,), 8), lacking(attempt=8)])
    assert [(row.status, row.attempt) async for row in store.profiles("j")] == [("ok", 8)]
    job = await job_of(store)
    assert (job.state, job.done, job.partial, job.usage.llm_calls) == ("done", 1, 0, 8 * SPENT.llm_calls)


async def test_partial_profiles_are_found_by_what_they_lack(store: AsyncDatabaseManager) -> None:
    towns = places(3)
    lacks = ("x", "y"), (), ("y",)
    by_town = [
        msgspec.structs.replace(lacking(*stages), destination_id=town.id)
        for town, stages in zip(towns, lacks, strict=True)
    ]
    await store.apply([*announced(*towns), *by_town])

    async def found(*stages: str) -> list[str]:
        return [row.destination.name async for row in store.partial("j", stages=stages)]

    assert await found() == ["Town 0", "Town 2"]
    assert await found("x") == ["Town 0"]
    assert await found("x", "y") == ["Town 0", "Town 2"]
    assert await found("z") == []
    assert [row.destination.name async for row in store.partial("j", "BadRequestError")] == ["Town 0", "Town 2"]
    assert [row.destination.name async for row in store.partial("j", "BadRequest")] == []
