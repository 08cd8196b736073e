"""One chunk's life, with a real ledger and real lanes; only what happens to a destination is the test's."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings
from tasks import keys
from tasks.connection import connect_async
from tasks.errors import BudgetExceededError
from tasks.jobs.events import decode, encode
from tasks.jobs.registry import options_of
from tasks.messages import (
    Chunk,
    Destination,
    Event,
    Failure,
    JobOptions,
    Result,
    Spent,
    StageRecord,
    StreamEntry,
    Usage,
    unpack,
)
from tasks.queue.ledger import Ledger, Taken, write_chunks
from tests.support.stored import done, profile_in, theme
from workers.llm.cancellation import Cancellation, CancellationToken
from workers.observe.call_journal import Bill, CallJournal, current
from workers.observe.profiler import PerformanceProfiler
from workers.worker.chunks import ChunkEnd, ChunkRunner
from workers.worker.destination import Process, Processed
from workers.worker.lanes import Lanes
from workers.worker.shortcut import FindKnown

JOB = "job-1"
NAMES = tuple(Destination.of(f"City {number}") for number in range(4))
CHUNK = Chunk(JOB, "00000000", NAMES)
FAILED = Failure("discover.food", "EndpointDownError", "planted", 1)


@pytest.fixture
async def client(redis_url: str, redis: Redis) -> AsyncIterator[AsyncRedis]:
    with redis.pipeline() as pipeline:
        write_chunks(pipeline, JOB, [(CHUNK, "City 0 + 3 more")], compress=True)
        pipeline.execute()
    client = connect_async(redis_url, socket_timeout_seconds=180)
    yield client
    await client.aclose()


class Rig:
    """A runner, and what it has sent."""

    def __init__(
        self,
        client: AsyncRedis,
        settings: Settings,
        lanes: Lanes[Destination],
        process: Process,
        journal: CallJournal | None = None,
        *,
        known: FindKnown | None = None,
    ) -> None:
        self.woken: list[str] = []
        self.is_readable = True
        self.options = b"{}"
        self.runner = ChunkRunner(
            ledger=Ledger(client, token=f"worker {id(self)}", lease_seconds=600),
            lanes=lanes,
            process=process,
            wake=self._wake,
            options=self._options,
            settings=settings,
            profiler=PerformanceProfiler(enabled=True),
            worker="w",
            journal=journal,
            known=known,
        )

    async def _wake(self, job_id: str, labelled: list[tuple[str, str]], priority: int) -> None:
        assert (job_id, priority) == (JOB, 5)
        self.woken += [chunk_id for chunk_id, _ in labelled]

    async def _options(self, job_id: str) -> JobOptions:
        assert job_id == JOB
        return options_of(self.options if self.is_readable else b"garbage")


def _results(redis: Redis) -> list[Result]:
    return [entry for entry in _entries(redis) if isinstance(entry, Result)]


def _spent(redis: Redis) -> list[Spent]:
    return [entry for entry in _entries(redis) if isinstance(entry, Spent)]


def _entries(redis: Redis) -> list[StreamEntry]:
    return [unpack(fields[b"b"], StreamEntry) for _, fields in redis.xrange(keys.RESULTS)]


async def _fails(_: Destination, __: Cancellation, ___: JobOptions, ____: int) -> Processed:
    return None, FAILED, Usage(llm_calls=1), False


async def test_a_chunk_runs_to_its_end_and_leaves_nothing_behind(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    async with Lanes[Destination](2, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, _fails)
        ends = await asyncio.gather(*(rig.runner.run(JOB, CHUNK.chunk_id) for _ in range(3)))
        assert sorted(ends) == [ChunkEnd.DONE, ChunkEnd.HELD, ChunkEnd.HELD]
        assert await rig.runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.GONE
    assert sorted(result.destination_id for result in _results(redis)) == sorted(name.id for name in NAMES)
    assert redis.keys("themes:job:*") == []


async def test_a_fault_of_our_own_fails_its_destination_by_name_and_the_others_go_on(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    async def process(destination: Destination, *_: object) -> Processed:
        if destination is not None and destination.name == "City 2":
            raise ZeroDivisionError("planted")
        return None, FAILED, Usage(llm_calls=1), False

    async with Lanes[Destination](2, steal=True) as lanes:
        assert await Rig(client, settings_for(), lanes, process).runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.DONE
    classes = {result.destination_id: result.failure.error_class for result in _results(redis) if result.failure}
    assert classes[NAMES[2].id] == "ZeroDivisionError"
    assert len(classes) == 4


def _unsendable(**fields: Any) -> Processed:
    profile = msgspec.structs.replace(profile_in(done(NAMES[0], usage=Usage(llm_calls=1))), **fields)
    return Processed.of(profile, is_retryable=False, attempt=1)


def _nested(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


#: Results that no message can carry, by what is wrong with them.
UNSENDABLE: dict[str, Processed] = {
    "failure.message holds a lone surrogate": (None, Failure("a", "E", "\ud800", 1), Usage(llm_calls=1), False),
    "usage.prompt_tokens is a whole number": _unsendable(usage=Usage(1, prompt_tokens=2**64)),
    "usage.llm_calls": _unsendable(stages=[StageRecord("a", "ok", "1", None, "called", Usage(llm_calls=2**63), 1.0)]),
    "themes[0].confidence is nan": _unsendable(themes=[theme(0, confidence=float("nan"))]),
    "elapsed_ms is nan": _unsendable(elapsed_ms=float("nan")),
    "it is nested too deeply": _unsendable(more={"a": _nested(100_000)}),
    "TypeError: Encoding objects of type object": _unsendable(more={"a": object()}),
}  # fmt: skip


@pytest.mark.parametrize("why", UNSENDABLE)
async def test_a_result_that_cannot_be_sent_ends_its_destination_and_counts_no_dead_worker(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings], why: str
) -> None:
    async def process(destination: Destination, *_: object) -> Processed:
        return UNSENDABLE[why] if destination.name == "City 0" else (None, FAILED, Usage(llm_calls=1), False)

    async with Lanes[Destination](2, steal=True) as lanes:
        assert await Rig(client, settings_for(), lanes, process).runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.DONE
    found = {result.destination_id: result for result in _results(redis)}
    assert len(found) == 4
    failure = found[NAMES[0].id].failure
    assert failure
    assert why in failure.message
    assert found[NAMES[0].id].usage.llm_calls == 1
    assert redis.keys("themes:job:*") == []


async def test_a_result_that_is_too_large_to_be_read_ends_its_destination(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The consumer refuses to unpack it: it was ticked off here and arrived nowhere."""
    monkeypatch.setattr("tasks.packed.MAX_UNPACKED_BYTES", 10_000)

    async def process(destination: Destination, *_: object) -> Processed:
        large = _unsendable(more={"a": "x" * 20_000})
        return large if destination.name == "City 0" else (None, FAILED, Usage(1), False)

    async with Lanes[Destination](2, steal=True) as lanes:
        assert await Rig(client, settings_for(), lanes, process).runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.DONE
    failures = {result.destination_id: result.failure for result in _results(redis) if result.failure}
    assert len(failures) == 4
    assert "bytes, at most 10,000 are allowed" in failures[NAMES[0].id].message


def test_an_event_with_half_a_surrogate_pair_is_told(redis: Redis) -> None:
    event = Event("stage.done", JOB, data={"found": ["\ud83d", {"a\udfff": 1}], "name": "\udc9d"})
    assert decode(b"1-1", {key.encode(): value for key, value in encode(event).items()}).data == {
        "found": ["\ufffd", {"a\ufffd": 1}], "name": "\ufffd",
    }  # fmt: skip


async def test_an_error_while_a_result_is_made_is_its_destinations_and_the_others_go_on(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    """A slot of the call journal holds 64 bits: what a server says beyond that is no reason to try three workers."""
    journal = CallJournal.in_folder(tmp_path, worker="w", lanes=2)

    async def process(destination: Destination, *_: object) -> Processed:
        run = current()
        assert run
        run.sent()
        run.ended(1, bill=Bill(2**70 if destination.name == "City 1" else 5))
        return None, FAILED, Usage(llm_calls=1), False

    async with Lanes[Destination](2, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, process, journal)
        assert await rig.runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.DONE
    journal.close()
    assert {r.destination_id: r.usage.prompt_tokens for r in _results(redis)} == {
        name.id: 0 if name.name == "City 1" else 5 for name in NAMES
    }
    assert {r.usage.llm_calls for r in _results(redis)} == {1}


async def test_a_fault_in_a_chunks_own_code_fails_what_is_left_by_its_name(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Lanes[Destination](2, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, _fails)

        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("planted")

        monkeypatch.setattr("workers.worker.chunks.queued_seconds", broken)
        assert await rig.runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.DONE
    failures = [result.failure for result in _results(redis) if result.failure]
    said = ("worker", "ZeroDivisionError", "planted")
    assert [(f.stage, f.error_class, f.message) for f in failures] == [said] * 4
    assert redis.keys("themes:job:*") == []


async def test_a_fault_after_a_chunk_was_split_fails_nothing(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    dead = Ledger(client, token="dead", lease_seconds=0.01)
    assert isinstance(await dead.take(JOB, CHUNK.chunk_id, max_unwritten=100), Taken)
    async with Lanes[Destination](2, steal=True) as lanes, asyncio.timeout(180):
        rig = Rig(client, settings_for(), lanes, _fails)
        rig.runner._quarantine._wake = broken_wake
        while (end := await rig.runner.run(JOB, CHUNK.chunk_id)) is ChunkEnd.HELD:
            await asyncio.sleep(0.01)
    assert end is ChunkEnd.GONE
    assert _results(redis) == []
    assert len(redis.hkeys(keys.chunks(JOB))) == 4, "the sweeper finds them"


async def broken_wake(*_: object) -> None:
    raise ZeroDivisionError("planted")


async def test_a_chunk_that_cannot_be_read_is_dropped_and_wakes_no_worker_after_worker(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    redis.hset(keys.chunks(JOB), CHUNK.chunk_id, b"\x01garbage")
    async with Lanes[Destination](2, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, _fails)
        assert await rig.runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.GONE
    assert redis.keys("themes:job:*") == []


async def test_a_job_that_cannot_be_read_keeps_no_worker_and_counts_no_death(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    async with Lanes[Destination](2, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, _fails)
        redis.set(keys.job(JOB), "a string")
        for _ in range(2):
            assert await asyncio.wait_for(rig.runner.run(JOB, CHUNK.chunk_id), 180) is ChunkEnd.GONE
        redis.delete(keys.job(JOB))
        rig.is_readable = False
        for _ in range(5):
            assert await rig.runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.GIVEN_BACK
        rig.is_readable = True
        assert await rig.runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.DONE
    assert {result.failure.error_class for result in _results(redis) if result.failure} == {"EndpointDownError"}
    assert len([record for record in caplog.records if "job_unreadable" in record.getMessage()]) == 1


async def test_leases_are_renewed_although_another_jobs_keys_hold_something_else(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def process(_: Destination, *__: object) -> Processed:
        started.set()
        await go_on.wait()
        return None, FAILED, Usage(llm_calls=1), False

    async with Lanes[Destination](4, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, process)
        running = asyncio.create_task(rig.runner.run(JOB, CHUNK.chunk_id))
        await asyncio.wait_for(started.wait(), 180)
        redis.set(keys.job(JOB), "a string")
        before = redis.zscore(keys.leases(JOB), CHUNK.chunk_id)
        assert before is not None
        async with asyncio.timeout(180):
            while (redis.zscore(keys.leases(JOB), CHUNK.chunk_id) or 0) <= before:
                await rig.runner.renew()
        redis.delete(keys.job(JOB))
        go_on.set()
        assert await running is ChunkEnd.DONE


async def test_an_error_that_may_pass_is_tried_again_and_paid_for_in_full(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.worker.destination.RETRY_SECONDS", 0.01)
    tried: dict[str, int] = {}

    async def process(destination: Destination, _: Cancellation, __: JobOptions, number: int) -> Processed:
        tried[destination.name] = number
        return None, FAILED, Usage(llm_calls=3), True

    async with Lanes[Destination](2, steal=True) as lanes:
        settings = settings_for(THEMES_WORK__DESTINATION_ATTEMPTS="3")
        await Rig(client, settings, lanes, process).runner.run(JOB, CHUNK.chunk_id)
    assert set(tried.values()) == {3}
    assert {result.usage.llm_calls for result in _results(redis)} == {9}


async def test_stopping_gives_back_what_was_not_started_and_wakes_another(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    started = asyncio.Event()
    go_on = asyncio.Event()

    async def process(_: Destination, *__: object) -> Processed:
        started.set()
        await go_on.wait()
        return None, FAILED, Usage(), False

    async with Lanes[Destination](1, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, process)
        run = asyncio.create_task(rig.runner.run(JOB, CHUNK.chunk_id))
        await started.wait()
        rig.runner.stop()
        go_on.set()
        assert await run is ChunkEnd.GIVEN_BACK
    assert len(_results(redis)) == 1
    assert rig.woken == [CHUNK.chunk_id]
    async with Lanes[Destination](1, steal=True) as lanes:
        assert await Rig(client, settings_for(), lanes, _fails).runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.DONE
    assert len({result.destination_id for result in _results(redis)}) == len(_results(redis)) == 4


async def test_what_does_not_end_within_the_grace_time_is_given_back_too(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    started = asyncio.Event()

    async def process(_: Destination, *__: object) -> Processed:
        started.set()
        await asyncio.sleep(60)
        return None, FAILED, Usage(), False

    async with Lanes[Destination](4, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, process)
        run = asyncio.create_task(rig.runner.run(JOB, CHUNK.chunk_id))
        await started.wait()
        rig.runner.stop()
        await rig.runner.settle(0.05)
        with pytest.raises(asyncio.CancelledError):
            await run
    assert rig.woken == [CHUNK.chunk_id]
    assert redis.zcard(keys.leases(JOB)) == 0, "another worker need not wait for the lease to end"


async def test_a_chunk_that_loses_worker_after_worker_is_split_and_then_given_up_by_name(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    redis.hset(keys.deliveries(JOB), CHUNK.chunk_id, 1)
    async with Lanes[Destination](2, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, _fails)
        assert await rig.runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.SPLIT
        assert len(rig.woken) == 4
        poisonous, *others = rig.woken
        assert redis.hget(keys.deliveries(JOB), poisonous) == b"1", "what was lost together counts for each"
        redis.hset(keys.deliveries(JOB), poisonous, 3)
        assert await rig.runner.run(JOB, poisonous) is ChunkEnd.DONE
        for chunk_id in others:
            assert await rig.runner.run(JOB, chunk_id) is ChunkEnd.DONE
    classes = [result.failure.error_class for result in _results(redis) if result.failure]
    assert sorted(classes) == ["EndpointDownError"] * 3 + ["WorkerLostError"]
    assert redis.keys("themes:job:*") == []


async def test_a_consumer_that_is_behind_is_waited_for(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    for _ in range(120):
        redis.xadd(keys.RESULTS, {"b": b"unread"})
    async with Lanes[Destination](2, steal=True) as lanes:
        rig = Rig(client, settings_for(THEMES_WORK__MAX_UNWRITTEN_RESULTS="100"), lanes, _fails)
        run = asyncio.create_task(rig.runner.run(JOB, CHUNK.chunk_id))
        done, _ = await asyncio.wait({run}, timeout=0.3)
        assert not done
        assert len(rig.runner.held) == 0
        redis.xtrim(keys.RESULTS, maxlen=0, approximate=False)
        async with asyncio.timeout(180):
            assert await run is ChunkEnd.DONE


@pytest.mark.parametrize("raised_meanwhile", [False, True])
async def test_a_destination_without_money_is_given_back_unharmed_and_its_job_pauses(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings], *, raised_meanwhile: bool
) -> None:
    redis.hset(keys.job(JOB), mapping={"job_id": JOB, "state": "running"})
    redis.hset(keys.budget(JOB), "limit", 200 if raised_meanwhile else 100)
    tried: list[str] = []

    async def process(destination: Destination, *_: object) -> Processed:
        tried.append(destination.name)
        if destination.name != "City 0":
            exceeded = BudgetExceededError("used up", job_id=JOB, reason="budget", limit_nano=100)
            exceeded.usage = Usage(llm_calls=5, cost_usd=0.5)
            raise exceeded
        return None, FAILED, Usage(llm_calls=1), False

    async with Lanes[Destination](1, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, process)
        end = await rig.runner.run(JOB, CHUNK.chunk_id)
        assert tried == ["City 0", "City 1"], "nothing more is started"
        assert [result.destination_id for result in _results(redis)] == [NAMES[0].id]
        assert redis.hget(keys.deliveries(JOB), CHUNK.chunk_id) == b"0"
        assert not redis.exists(keys.leases(JOB))
        if raised_meanwhile:
            assert (end, rig.woken) == (ChunkEnd.GIVEN_BACK, [CHUNK.chunk_id])
            assert not redis.hexists(keys.job(JOB), "paused")
        else:
            assert (end, rig.woken) == (ChunkEnd.PAUSED, [])
            assert redis.hget(keys.job(JOB), "paused") == b"budget"
            assert await rig.runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.PAUSED
            redis.hdel(keys.job(JOB), "paused")
        again = Rig(client, settings_for(), lanes, _fails)
        assert await again.runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.DONE
    assert {result.destination_id: result.usage.llm_calls for result in _results(redis)} == {n.id: 1 for n in NAMES}
    assert [(spent.destination_id, spent.usage.llm_calls) for spent in _spent(redis)] == [(NAMES[1].id, 5)]
    assert {key.decode() for key in redis.keys("themes:job:*")} == {keys.job(JOB), keys.budget(JOB)}


@pytest.mark.parametrize(
    ("state", "end"),
    [({"state": "cancelled"}, ChunkEnd.GONE), ({"state": "running", "paused": "user"}, ChunkEnd.PAUSED)],
)
async def test_a_stopped_job_goes_no_further_and_what_it_has_cost_is_booked(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings], state: dict[str, str], end: ChunkEnd
) -> None:
    started = asyncio.Event()

    async def process(_: Destination, cancellation: Cancellation, *__: object) -> Processed:
        with cancellation.watching(CancellationToken(cancellation)):
            try:
                started.set()
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                error = cancellation.error()
                error.usage = Usage(llm_calls=3)
                raise error from None
        raise AssertionError

    async with Lanes[Destination](1, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, process)
        run = asyncio.create_task(rig.runner.run(JOB, CHUNK.chunk_id))
        await started.wait()
        redis.hset(keys.job(JOB), mapping={"job_id": JOB, **state})
        if end is ChunkEnd.GONE:
            redis.delete(keys.chunks(JOB), keys.leases(JOB), keys.owners(JOB))
        # Nobody tells of it: the heartbeat looks by itself.
        await rig.runner.renew()
        assert await run is end
        assert rig.woken == []
    assert _results(redis) == []
    assert [(spent.destination_id, spent.usage.llm_calls) for spent in _spent(redis)] == [(NAMES[0].id, 3)]


async def test_a_resumed_job_goes_on_in_the_process_that_stopped_it(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    async def process(_: Destination, cancellation: Cancellation, *__: object) -> Processed:
        cancellation.stop("the job is paused")
        raise cancellation.error()

    async with Lanes[Destination](1, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, process)
        redis.hset(keys.job(JOB), mapping={"job_id": JOB, "state": "running"})
        assert await rig.runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.GIVEN_BACK
        assert await Rig(client, settings_for(), lanes, _fails).runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.DONE


async def test_what_a_slower_worker_has_spent_on_a_finished_destination_is_booked_too(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    async def process(_: Destination, *__: object) -> Processed:
        redis.sadd(keys.finished(JOB, CHUNK.chunk_id), *(name.id for name in NAMES))
        return None, FAILED, Usage(llm_calls=2), False

    async with Lanes[Destination](4, steal=True) as lanes:
        await Rig(client, settings_for(), lanes, process).runner.run(JOB, CHUNK.chunk_id)
    assert _results(redis) == []
    assert sorted(spent.destination_id for spent in _spent(redis)) == sorted(name.id for name in NAMES)


async def test_destinations_whose_workers_died_twice_are_tried_one_at_a_time(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    """The one that kills and those that were only near it would die together, three times."""
    at_work, most = 0, 0
    go_on = asyncio.Event()

    async def process(*_: object) -> Processed:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        await go_on.wait()
        at_work -= 1
        return None, FAILED, Usage(llm_calls=1), False

    async with Lanes[Destination](4, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, process)
        redis.hset(keys.deliveries(JOB), CHUNK.chunk_id, 1)
        assert await rig.runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.SPLIT
        singles = list(rig.woken)
        redis.hset(keys.deliveries(JOB), mapping=dict.fromkeys(singles, 2))
        async with asyncio.timeout(180):
            running = [asyncio.create_task(rig.runner.run(JOB, one)) for one in singles]
            # One is at work until the others have been given back.
            while sum(task.done() for task in running) < 3:
                await asyncio.sleep(0.001)
            go_on.set()
            ends = await asyncio.gather(*running)
        assert sorted(ends) == [ChunkEnd.DONE, *[ChunkEnd.GIVEN_BACK] * 3]
        for _ in range(3):
            assert await rig.runner.run(JOB, rig.woken[-1]) is ChunkEnd.DONE
    assert most == 1
    assert {result.failure.error_class for result in _results(redis) if result.failure} == {"EndpointDownError"}
    assert redis.keys("themes:job:*") == []


# --- destinations that the cache has whole ------------------------------------------------------------------------


def _cached(destination: Destination) -> Processed:
    usage = Usage(cache_hits=16, saved_usd=0.5)
    return Processed.of(profile_in(done(destination, usage=usage)), is_retryable=False, attempt=1)


async def test_what_the_cache_has_is_handed_in_together_and_the_rest_goes_to_lanes(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    asked: list[list[str]] = []
    worked: list[str] = []

    async def known(job_id: str, some: Sequence[Destination], options: JobOptions) -> list[Processed | None]:
        assert (job_id, options.use_cache) == (JOB, True)
        asked.append([each.id for each in some])
        return [_cached(each) if each in NAMES[1:3] else None for each in some]

    async def process(destination: Destination, *_: object) -> Processed:
        worked.append(destination.id)
        return Processed(None, FAILED, Usage(llm_calls=1), is_retryable=False)

    before = redis.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
    async with Lanes[Destination](2, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, process, known=known)
        assert await rig.runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.DONE
    assert asked == [[each.id for each in NAMES]]
    assert worked == [NAMES[0].id, NAMES[3].id]
    found = {result.destination_id: result for result in _results(redis)}
    assert [bool(found[each.id].profile) for each in NAMES] == [False, True, True, False]
    assert found[NAMES[1].id].usage == Usage(cache_hits=16, saved_usd=0.5)
    assert found[NAMES[1].id].attempt == found[NAMES[0].id].attempt == 1
    assert redis.keys("themes:job:*") == []
    scripts = redis.info("commandstats")["cmdstat_evalsha"]["calls"] - before
    assert scripts <= 4, "the lease, two results together, and one for each other"


async def test_a_job_without_the_cache_looks_for_no_whole_profile(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    async def known(*_: object) -> list[Processed | None]:
        pytest.fail("it was looked up")

    async with Lanes[Destination](2, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, _fails, known=known)
        rig.options = b'{"use_cache": false}'
        assert await rig.runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.DONE
    assert len(_results(redis)) == 4


async def test_a_stopped_job_gets_no_further_cached_results(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.worker.shortcut.PAGE", 2)

    async def known(_: str, some: Sequence[Destination], __: JobOptions) -> list[Processed | None]:
        redis.hset(keys.job(JOB), mapping={"job_id": JOB, "paused": "user"})
        rig.runner.cancellations.of(JOB).stop("the job is paused")
        return [_cached(each) for each in some]

    async with Lanes[Destination](2, steal=True) as lanes:
        rig = Rig(client, settings_for(), lanes, _fails, known=known)
        assert await rig.runner.run(JOB, CHUNK.chunk_id) is ChunkEnd.PAUSED
    assert [result.destination_id for result in _results(redis)] == [NAMES[0].id, NAMES[1].id]
    assert redis.smembers(keys.finished(JOB, CHUNK.chunk_id)) == {each.id.encode() for each in NAMES[:2]}
    assert rig.woken == []


async def test_a_cached_result_that_another_worker_had_first_is_booked_alone(
    client: AsyncRedis, redis: Redis, settings_for: Callable[..., Settings]
) -> None:
    async def known(_: str, some: Sequence[Destination], __: JobOptions) -> list[Processed | None]:
        redis.sadd(keys.finished(JOB, CHUNK.chunk_id), NAMES[2].id)
        return [_cached(each) for each in some]

    async with Lanes[Destination](2, steal=True) as lanes:
        assert await Rig(client, settings_for(), lanes, _fails, known=known).runner.run(JOB, CHUNK.chunk_id) is (
            ChunkEnd.DONE
        )
    assert len(_results(redis)) == 3
    assert [(spent.destination_id, spent.usage.cache_hits) for spent in _spent(redis)] == [(NAMES[2].id, 16)]
    assert redis.keys("themes:job:*") == []
