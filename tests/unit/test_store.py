import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import DatabaseBusyError, DatabaseError
from tasks.messages import (
    Destination,
    Failure,
    JobClosed,
    JobInputs,
    JobOpened,
    JobOptions,
    JobReopened,
    JobSealed,
    Profile,
    QualityAssessment,
    Result,
    Seasonality,
    Spent,
    StreamEntry,
    Theme,
    Usage,
)
from workers.results.rows import JobRow
from workers.results.store import AsyncDatabaseManager
from workers.results.tables import SINCE_VERSION_2, USAGE_TABLES

SPENT = Usage(llm_calls=2, cache_hits=1, coalesced=1, prompt_tokens=100, completion_tokens=50, cost_usd=0.25)


def manager_of(folder: Path, *, timeout_seconds: float = 5.0) -> AsyncDatabaseManager:
    url = f"sqlite+aiosqlite:///{folder / 'themes.db'}"
    return AsyncDatabaseManager(url, pool_size=3, timeout_seconds=timeout_seconds)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[AsyncDatabaseManager]:
    async with manager_of(tmp_path) as manager:
        yield manager


def places(count: int) -> list[Destination]:
    return [Destination.of(f"Town {n}", "Utopia", extra={"row": str(n)}) for n in range(count)]


KYOTO = Destination.of("Kyoto", "Japan", region="Kansai", lat=35.0, lon=135.75, extra={"tier": "1"})


def theme(number: int, **more: Any) -> Theme:
    return Theme(f"t{number}", "food", f"Theme {number}", "Told.", [], **more)


def done(
    destination: Destination = KYOTO,
    *,
    attempt: int = 0,
    usage: Usage = SPENT,
    job: str = "j",
    worker: str = "w",
    at: float = 1000.0,
    partial: bool = False,
    themes: int = 2,
    **more: Any,
) -> Result:
    fields: dict[str, Any] = {"model": "sandbox", "themes": [theme(n) for n in range(themes)], **more}
    profile = Profile(
        destination_id=destination.id,
        name=destination.name,
        country=destination.country,
        status="partial" if partial else "ok",
        pipeline_version="1",
        overlap_analysis=None,
        quality_assessment=QualityAssessment(0.5, 0.6, 0.7, overall=0.8),
        missing=[],
        stages=[],
        usage=usage,
        elapsed_ms=12.5,
        created_at=at,
        **fields,
    )
    return Result(job, destination.id, attempt, usage, worker, at, 12.5, profile=profile)


def failed(
    destination: Destination = KYOTO,
    *,
    attempt: int = 0,
    usage: Usage = SPENT,
    job: str = "j",
    worker: str = "w",
    at: float = 1000.0,
    message: str = "429",
) -> Result:
    failure = Failure("discover.food", "RateLimitedError", message, attempt + 1)
    return Result(job, destination.id, attempt, usage, worker, at, 12.5, failure=failure)


def announced(*destinations: Destination, job: str = "j") -> list[StreamEntry]:
    return [
        JobOpened(job, "a name", 900.0, JobOptions()),
        JobInputs(job, destinations),
        JobSealed(job, len(destinations)),
    ]


async def job_of(store: AsyncDatabaseManager, job: str = "j") -> JobRow:
    found = await store.job(job)
    assert found is not None
    return found


async def counts(store: AsyncDatabaseManager) -> tuple[int, int, int, int]:
    job = await job_of(store)
    return job.done, job.failed, job.partial, job.usage.llm_calls


def select(store: AsyncDatabaseManager, sql: str) -> list[Any]:
    with sqlite3.connect(store.path) as connection:
        rows = connection.execute(sql).fetchall()
    connection.close()
    return rows


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


async def test_a_profile_its_themes_and_the_input_come_back_as_they_were(store: AsyncDatabaseManager) -> None:
    rich = theme(
        1,
        seasonality=Seasonality(["April"], ["August"]),
        traveler_types=["solo"],
        price_point="mid",
        confidence=0.5,
        authenticity_score=0.25,
    )
    result = done(themes=0, more={"new": [1]}).profile
    assert result is not None
    result = msgspec.structs.replace(result, themes=[rich, theme(2)])
    await store.apply([*announced(KYOTO), msgspec.structs.replace(done(), profile=result)])
    [row] = [r async for r in store.profiles("j")]
    assert row.profile() == result
    assert (row.quality, row.status, row.usage, row.created_at) == (0.8, "ok", SPENT, 1000.0)
    [place] = [r async for r in store.destinations("j")]
    assert (place.destination, place.state, place.usage, place.listed) == (KYOTO, "done", SPENT, True)
    assert select(store, "SELECT * FROM themes ORDER BY rank") == [
        (
            "j",
            KYOTO.id,
            1,
            "food",
            "Theme 1",
            "Told.",
            0.5,
            "mid",
            0.25,
            '["April"]',
            '["August"]',
            '["solo"]',
        ),
        ("j", KYOTO.id, 2, "food", "Theme 2", "Told.", None, None, None, None, None, None),
    ]


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


# --- attempts ---------------------------------------------------------------------------------------------------


async def test_a_newer_attempt_wins_an_older_one_does_not_and_both_were_paid_for(
    store: AsyncDatabaseManager,
) -> None:
    await store.apply([*announced(KYOTO), done(attempt=1, model="new", themes=3)])
    await store.apply([done(attempt=0, model="old", themes=5)])
    [row] = [r async for r in store.profiles("j")]
    assert (row.model, row.attempt) == ("new", 1)
    assert select(store, "SELECT count(*) FROM themes") == [(3,)]
    assert await counts(store) == (1, 0, 0, 4)


async def test_of_equal_attempts_the_later_one_is_kept_but_no_failure_replaces_a_profile(
    store: AsyncDatabaseManager,
) -> None:
    await store.apply([*announced(KYOTO), done(model="first", themes=5)])
    await store.apply([done(model="second", worker="other", themes=1)])
    await store.apply([failed(worker="third")])
    [row] = [r async for r in store.profiles("j")]
    assert row.model == "second"
    assert select(store, "SELECT count(*) FROM themes") == [(1,)]
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
    assert select(store, "SELECT (SELECT count(*) FROM profiles), (SELECT count(*) FROM themes)") == [(0, 0)]


async def test_the_same_entries_twice_change_nothing_and_are_shown_again(store: AsyncDatabaseManager) -> None:
    entries = [*announced(*places(2)), done(places(2)[0]), failed(places(2)[1])]
    first = await store.apply(entries)
    queries = ["SELECT * FROM themes", "SELECT * FROM failures", "SELECT * FROM attempts"]
    before = [select(store, query) for query in queries]
    job = await job_of(store)
    second = await store.apply([*entries, *entries])
    assert [select(store, query) for query in queries] == before
    assert msgspec.structs.asdict(job.usage) == msgspec.structs.asdict((await job_of(store)).usage)
    assert (await job_of(store)).finished_at == job.finished_at
    assert second.outcomes == first.outcomes
    assert second.jobs["j"].revision > first.jobs["j"].revision


async def test_an_attempt_that_two_workers_made_was_paid_for_twice(store: AsyncDatabaseManager) -> None:
    await store.apply([*announced(KYOTO), done(worker="a"), done(worker="b"), done(worker="a")])
    assert await counts(store) == (1, 0, 0, 4)


async def test_a_row_keeps_the_time_it_was_made(store: AsyncDatabaseManager) -> None:
    await store.apply([*announced(KYOTO), done(at=1000.0)])
    made = select(store, "SELECT created_at FROM destinations")
    await store.apply([done(attempt=1, at=2000.0), JobOpened("j", "renamed", 5.0, JobOptions())])
    [row] = [r async for r in store.profiles("j")]
    assert (row.created_at, row.attempt) == (1000.0, 1)
    assert select(store, "SELECT created_at FROM destinations") == made
    assert ((await job_of(store)).name, (await job_of(store)).created_at) == ("a name", 900.0)


async def test_an_unknown_price_makes_the_cost_unknown_not_zero(store: AsyncDatabaseManager) -> None:
    towns = places(3)
    unknown = Usage(llm_calls=1, cost_usd=None)
    await store.apply([*announced(*towns), done(towns[0]), done(towns[1], usage=unknown), done(towns[2])])
    job = await job_of(store)
    assert job.usage.cost_usd is None
    assert job.usage.llm_calls == 5
    assert select(store, "SELECT cost_usd FROM destinations ORDER BY rowid") == [(0.25,), (None,), (0.25,)]


# --- the order of the stream is not trusted -----------------------------------------------------------------------


async def test_results_without_their_job_or_input_are_stored_and_filled_in_later(
    store: AsyncDatabaseManager,
) -> None:
    other = places(1)[0]
    await store.apply([done(), failed(other)])
    names = select(store, "SELECT name, country, listed FROM destinations ORDER BY rowid")
    assert names == [("Kyoto", "Japan", 0), (other.id, None, 0)]
    await store.apply(announced(KYOTO, other))
    assert [r.destination async for r in store.destinations("j")] == [KYOTO, other]
    job = await job_of(store)
    assert (job.name, job.created_at, job.state, job.done, job.failed) == ("a name", 900.0, "done", 1, 1)


async def test_an_input_that_comes_again_in_another_spelling_keeps_the_first(
    store: AsyncDatabaseManager,
) -> None:
    await store.apply(announced(KYOTO))
    await store.apply([JobInputs("j", (Destination.of("KYOTO", "japan"),))])
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
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_arrives_in_whatever_order_the_totals_equal_the_sums_and_the_model(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[StreamEntry]]
) -> None:
    async def run() -> None:
        folder = tmp_path_factory.mktemp("sums")
        async with manager_of(folder) as store:
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
    assert {r.destination.id: r.attempt for r in rows if r.state != "queued"} == {
        key: attempt for key, (_, attempt) in states.items()
    }
    assert {r.destination_id: r.status async for r in store.profiles("j")} == {
        key: state for key, (state, _) in states.items() if state != "failed"
    }
    assert {r.destination_id async for r in store.failures("j")} == {
        key for key, (state, _) in states.items() if state == "failed"
    }


# --- bad rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (failed(places(3)[1], message="a lone \ud800"), "UnicodeEncodeError"),
        (done(places(3)[1], usage=Usage(prompt_tokens=2**70)), "OverflowError"),
        (done(places(3)[1], model="\udfff"), "UnicodeEncodeError"),
        (msgspec.structs.replace(done(places(3)[1]), profile=None), "neither|either a profile or a failure"),
    ],
)
async def test_one_bad_row_is_refused_with_its_reason_and_the_rest_of_the_batch_is_written(
    store: AsyncDatabaseManager, bad: Result, why: str
) -> None:
    towns = places(3)
    applied = await store.apply([*announced(*towns), done(towns[0]), bad, failed(towns[2])])
    assert [(r.index, r.entry) for r in applied.rejected] == [(4, bad)]
    assert any(word in applied.rejected[0].reason for word in why.split("|"))
    assert await counts(store) == (1, 1, 0, 4)
    assert [o.result.destination_id for o in applied.outcomes] == [towns[0].id, towns[2].id]
    assert [r.destination async for r in store.missing("j")] == [towns[1]]
    assert (store.stats().rejected, store.stats().batches) == (1, 1)


async def test_a_sum_beyond_what_the_database_holds_refuses_the_entry_that_overflows_it(
    store: AsyncDatabaseManager,
) -> None:
    towns = places(2)
    most = Usage(prompt_tokens=2**63 - 1)
    applied = await store.apply([*announced(*towns), done(towns[0], usage=most), done(towns[1], usage=SPENT)])
    assert [r.index for r in applied.rejected] == [4]
    assert (await job_of(store)).usage.prompt_tokens == 2**63 - 1


# --- the file -----------------------------------------------------------------------------------------------------


async def test_two_that_create_the_database_at_once_both_succeed(tmp_path: Path) -> None:
    managers = [manager_of(tmp_path / "new" / "folder") for _ in range(4)]
    await asyncio.gather(*(manager.create() for manager in managers))
    await asyncio.gather(*(m.apply(announced(KYOTO, job=f"j{n}")) for n, m in enumerate(managers)))
    assert len(await managers[0].jobs()) == 4
    for manager in managers:
        await manager.close()


async def test_the_writer_syncs_every_commit_and_readers_cannot_write(store: AsyncDatabaseManager) -> None:
    async with store.writing() as connection:
        pragmas = {
            name: (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "temp_store", "user_version")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "temp_store": 2,
        "user_version": 3,
    }
    with pytest.raises(DatabaseError, match="readonly"):
        async with store.reading() as connection:
            await connection.exec_driver_sql("DELETE FROM jobs")


async def test_a_corrupt_file_is_named_with_its_mend_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "themes.db"
    file.write_bytes(b"this is no database " * 500)
    store = manager_of(tmp_path)
    with pytest.raises(DatabaseError, match=r"themes\.db: file is not a database; move this file away") as error:
        await store.create()
    assert "\n" not in str(error.value)
    assert file.read_bytes().startswith(b"this is no database")
    await store.close()


async def test_a_newer_versions_file_is_refused_for_writing_and_reading(tmp_path: Path) -> None:
    async with manager_of(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "themes.db") as connection:
        connection.execute("PRAGMA user_version=4")
    connection.close()
    for use in ("create", "open"):
        store = manager_of(tmp_path)
        with pytest.raises(DatabaseError, match="newer version of themes"):
            await getattr(store, use)()
        await store.close()


async def test_a_version_1_file_is_brought_up_to_date_with_what_is_in_it(tmp_path: Path) -> None:
    async with manager_of(tmp_path) as store:
        await store.apply(announced(KYOTO))
    with sqlite3.connect(tmp_path / "themes.db") as connection:
        for table in USAGE_TABLES:
            for column in SINCE_VERSION_2:
                connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute("DROP INDEX profiles_by_destination")
        connection.execute("PRAGMA user_version=1")
    connection.close()
    reader = manager_of(tmp_path)
    with pytest.raises(DatabaseError, match="older version of themes; `themes consumer`"):
        await reader.open()
    await reader.close()
    async with manager_of(tmp_path) as store:
        (job,) = await store.jobs()
        assert job.usage == Usage()
        await store.apply(announced(KYOTO, job="another"))
        assert len(await store.jobs()) == 2
    async with manager_of(tmp_path) as store:
        assert len(await store.jobs()) == 2


async def test_another_applications_file_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "themes.db") as connection:
        connection.execute("CREATE TABLE contacts(name)")
    connection.close()
    store = manager_of(tmp_path)
    with pytest.raises(DatabaseError, match="another application"):
        await store.create()
    await store.close()


async def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "themes.db").mkdir()
    store = manager_of(tmp_path)
    with pytest.raises(DatabaseError, match="is a folder"):
        await store.create()


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = manager_of(tmp_path / "file" / "below")
    with pytest.raises(DatabaseError, match="cannot be made"):
        await store.create()


async def test_an_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.geteuid() == 0:  # root may write everywhere: only the answer of the system can be had
        monkeypatch.setattr(os, "access", lambda *_: False)
    store = manager_of(folder)
    with pytest.raises(DatabaseError, match="cannot be written; make the file and its folder writable"):
        await store.create()


@pytest.mark.parametrize("url", ["postgresql://host/db", "sqlite+aiosqlite://", "no url", "sqlite:///:memory:"])
def test_a_url_that_is_no_sqlite_file_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(DatabaseError, match="sqlite\\+aiosqlite:////absolute/path.db"):
        AsyncDatabaseManager(url)


async def test_a_file_deleted_or_replaced_while_open_takes_no_batch(store: AsyncDatabaseManager) -> None:
    await store.apply(announced(KYOTO))
    store.path.unlink()
    with pytest.raises(DatabaseError, match="deleted or replaced"):
        await store.apply([done()])
    store.path.touch()
    with pytest.raises(DatabaseError, match="deleted or replaced"):
        await store.apply([done()])
    assert store.stats().batches == 1
    assert store.path.read_bytes() == b""


async def test_a_held_database_is_busy_and_the_same_batch_is_written_later(tmp_path: Path) -> None:
    async with manager_of(tmp_path, timeout_seconds=0.1) as store:
        holder = sqlite3.connect(store.path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseBusyError, match="locked"):
            await store.apply(announced(KYOTO))
        assert await store.jobs() == []
        holder.execute("ROLLBACK")
        holder.close()
        await store.apply(announced(KYOTO))
        assert len(await store.jobs()) == 1


async def test_looking_at_a_database_that_is_not_there_says_what_makes_it(tmp_path: Path) -> None:
    store = manager_of(tmp_path)
    with pytest.raises(DatabaseError, match="themes consumer"):
        await store.open()
    assert not store.path.exists()
    async with manager_of(tmp_path) as writer:
        await writer.apply([*announced(KYOTO), done()])
        await store.open()
        assert [row.name async for row in store.profiles("j")] == ["Kyoto"]
    await store.close()


async def test_what_was_written_is_measured_and_shown(store: AsyncDatabaseManager) -> None:
    await store.apply([*announced(KYOTO), done()])
    stats = store.stats()
    assert (stats.batches, stats.entries) == (1, 4)
    assert stats.seconds_per_batch > 0
    assert f"batches=1 rows={stats.rows}" in repr(store)
