"""The books in a real Redis: leases, deliveries, and results that are published once."""

import time
from collections.abc import AsyncIterator, Callable

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings
from tasks import keys
from tasks.connection import connect_async
from tasks.jobs.registry import status
from tasks.messages import Chunk, Destination, Failure, JobInputs, Result, StreamEntry, Usage, unpack
from tasks.queue.ledger import Ledger, Taken, Taking, write_chunks
from tasks.queue.producer import enqueue

JOB = "job-1"
NAMES = tuple(Destination.of(name) for name in ("Kyoto", "Paris", "Oslo"))
CHUNK = Chunk(JOB, "00000000", NAMES)


def _result(destination: Destination, chunk: Chunk = CHUNK) -> Result:
    failure = Failure("discover.food", "EndpointDownError", "planted", 1)
    return Result(chunk.job_id, destination.id, 1, Usage(llm_calls=5), "w", time.time(), 1.0, failure=failure)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncRedis]:
    client = connect_async(redis_url, socket_timeout_seconds=180)
    yield client
    await client.aclose()


@pytest.fixture
def written(redis: Redis) -> Redis:
    with redis.pipeline() as pipeline:
        write_chunks(pipeline, JOB, [(CHUNK, "Kyoto + 2 more")], compress=True)
        pipeline.execute()
    return redis


def _ledger(client: AsyncRedis, token: str = "a", lease_seconds: float = 10) -> Ledger:
    return Ledger(client, token=token, lease_seconds=lease_seconds)


def test_the_inputs_go_down_the_stream_before_any_message(written: Redis) -> None:
    ((_, fields),) = written.xrange(keys.RESULTS)
    entry = unpack(fields[b"b"], StreamEntry)
    assert entry == JobInputs(JOB, NAMES)


async def test_a_chunk_is_taken_once_and_held_for_the_others(client: AsyncRedis, written: Redis) -> None:
    taken = await _ledger(client).take(JOB, CHUNK.chunk_id, max_unwritten=100)
    assert isinstance(taken, Taken)
    assert (taken.chunk, taken.deliveries, taken.finished) == (CHUNK, 1, frozenset())
    assert await _ledger(client, "b").take(JOB, CHUNK.chunk_id, max_unwritten=100) is Taking.HELD
    assert await _ledger(client).take(JOB, "unknown", max_unwritten=100) is Taking.GONE


async def test_a_take_whose_reply_was_lost_is_taken_again(client: AsyncRedis, written: Redis) -> None:
    ledger = _ledger(client)
    await ledger.take(JOB, CHUNK.chunk_id, max_unwritten=100)
    assert isinstance(await ledger.take(JOB, CHUNK.chunk_id, max_unwritten=100), Taken)


async def test_a_dead_lease_is_found_and_another_worker_goes_on_with_what_is_left(
    client: AsyncRedis, written: Redis
) -> None:
    dying = _ledger(client, "dying", lease_seconds=3600)
    taken = await dying.take(JOB, CHUNK.chunk_id, max_unwritten=100)
    assert isinstance(taken, Taken)
    await dying.finish(CHUNK, [_result(NAMES[0])])
    waiting, dead = await _ledger(client).sweep(JOB)
    assert (waiting, dead) == (0, [])
    # Its last heartbeat was a lease ago.
    written.zadd(keys.leases(JOB), {CHUNK.chunk_id: 1})
    waiting, dead = await _ledger(client).sweep(JOB)
    assert (waiting, dead) == (1, [CHUNK.chunk_id])
    again = await _ledger(client, "b").take(JOB, CHUNK.chunk_id, max_unwritten=100)
    assert isinstance(again, Taken)
    assert again.deliveries == 2
    assert again.finished == {NAMES[0].id}
    assert await dying.renew(JOB, [CHUNK.chunk_id]) == [CHUNK.chunk_id]


async def test_a_renewed_lease_lives_on(client: AsyncRedis, written: Redis) -> None:
    ledger = _ledger(client, lease_seconds=60)
    await ledger.take(JOB, CHUNK.chunk_id, max_unwritten=100)
    written.zadd(keys.leases(JOB), {CHUNK.chunk_id: 1})
    assert await ledger.renew(JOB, [CHUNK.chunk_id]) == []
    ends = written.zscore(keys.leases(JOB), CHUNK.chunk_id)
    assert ends > (written.time()[0] + 30) * 1000
    assert await ledger.sweep(JOB) == (0, [])


async def test_a_result_is_published_once_and_the_last_one_closes_the_chunk(client: AsyncRedis, written: Redis) -> None:
    ledger = _ledger(client)
    await ledger.take(JOB, CHUNK.chunk_id, max_unwritten=100)
    for name in NAMES[:2]:
        assert await ledger.finish(CHUNK, [_result(name)]) == [True]
        assert await ledger.finish(CHUNK, [_result(name)]) == [False], "a repeated call publishes nothing"
    assert written.hexists(keys.chunks(JOB), CHUNK.chunk_id)
    assert await ledger.finish(CHUNK, [_result(NAMES[2])]) == [True]
    assert await ledger.finish(CHUNK, [_result(NAMES[2])]) == [False]
    results = [unpack(fields[b"b"], StreamEntry) for _, fields in written.xrange(keys.RESULTS)]
    assert [entry.destination_id for entry in results if isinstance(entry, Result)] == [name.id for name in NAMES]
    assert written.keys("themes:job:*") == []


async def test_giving_back_frees_the_chunk_and_does_not_count_as_a_death(client: AsyncRedis, written: Redis) -> None:
    ledger = _ledger(client)
    await ledger.take(JOB, CHUNK.chunk_id, max_unwritten=100)
    assert await ledger.give_back(JOB, CHUNK.chunk_id)
    assert not await ledger.give_back(JOB, CHUNK.chunk_id)
    taken = await _ledger(client, "b").take(JOB, CHUNK.chunk_id, max_unwritten=100)
    assert isinstance(taken, Taken)
    assert taken.deliveries == 1
    assert not await ledger.give_back(JOB, CHUNK.chunk_id), "another worker's chunk is not ours to give"


async def test_a_consumer_that_is_behind_holds_new_work_back(client: AsyncRedis, written: Redis) -> None:
    for _ in range(5):
        written.xadd(keys.RESULTS, {"b": b"x"})
    assert await _ledger(client).take(JOB, CHUNK.chunk_id, max_unwritten=3) is Taking.FULL
    assert isinstance(await _ledger(client).take(JOB, CHUNK.chunk_id, max_unwritten=100), Taken)


async def test_a_split_chunk_leaves_single_destinations_for_what_it_had_left(
    client: AsyncRedis, written: Redis
) -> None:
    ledger = _ledger(client)
    await ledger.take(JOB, CHUNK.chunk_id, max_unwritten=100)
    await ledger.finish(CHUNK, [_result(NAMES[0])])
    await ledger.give_back(JOB, CHUNK.chunk_id)
    taken = await ledger.take(JOB, CHUNK.chunk_id, max_unwritten=100)
    assert isinstance(taken, Taken)
    singles = await ledger.split(taken)
    assert [one.destinations for one in singles] == [(NAMES[1],), (NAMES[2],)]
    assert await ledger.take(JOB, CHUNK.chunk_id, max_unwritten=100) is Taking.GONE
    assert await ledger.oldest_waiting(JOB, 10) == [one.chunk_id for one in singles]
    for one in singles:
        await ledger.finish(one, [_result(one.destinations[0], one)])
    assert written.keys("themes:job:*") == []


async def test_what_is_given_away_is_done_once_by_others(client: AsyncRedis, written: Redis) -> None:
    mine, other = _ledger(client), _ledger(client, "other")
    await mine.take(JOB, CHUNK.chunk_id, max_unwritten=100)
    new = Chunk(JOB, "00000000-1.1", NAMES[1:])
    for _ in range(2):  # its first reply was lost
        assert await mine.hand_off(CHUNK, new, "given")
    taken = await other.take(JOB, new.chunk_id, max_unwritten=100)
    assert isinstance(taken, Taken)
    assert taken.chunk.destinations == NAMES[1:]
    assert await mine.finish(CHUNK, [_result(NAMES[0])]) == [True]
    assert not written.hexists(keys.chunks(JOB), CHUNK.chunk_id), "nothing is left of the old chunk"
    for name in NAMES[1:]:
        assert await other.finish(new, [_result(name, new)]) == [True]
    assert written.keys("themes:job:*") == []


async def test_a_chunk_whose_last_destinations_are_given_away_is_gone(client: AsyncRedis, written: Redis) -> None:
    mine = _ledger(client)
    await mine.take(JOB, CHUNK.chunk_id, max_unwritten=100)
    await mine.finish(CHUNK, [_result(NAMES[0])])
    assert await mine.hand_off(CHUNK, Chunk(JOB, "n", NAMES[1:]), "given")
    assert {key.decode() for key in written.hkeys(keys.chunks(JOB))} == {"n"}
    assert not written.exists(keys.leases(JOB), keys.owners(JOB), keys.finished(JOB, CHUNK.chunk_id))


async def test_of_a_chunk_that_is_somebody_else_s_nothing_is_given_away(client: AsyncRedis, written: Redis) -> None:
    mine, other = _ledger(client), _ledger(client, "other")
    await other.take(JOB, CHUNK.chunk_id, max_unwritten=100)
    assert not await mine.hand_off(CHUNK, Chunk(JOB, "n", NAMES[1:]), "given")
    assert written.hlen(keys.chunks(JOB)) == 1


async def test_a_lease_of_our_own_is_taken_again_without_another_delivery(client: AsyncRedis, written: Redis) -> None:
    ledger = _ledger(client)
    for _ in range(3):  # replies were lost
        taken = await ledger.take(JOB, CHUNK.chunk_id, max_unwritten=100)
        assert isinstance(taken, Taken)
        assert taken.deliveries == 1


async def test_a_split_that_is_repeated_changes_nothing(client: AsyncRedis, written: Redis) -> None:
    ledger = _ledger(client)
    taken = await ledger.take(JOB, CHUNK.chunk_id, max_unwritten=100)
    assert isinstance(taken, Taken)
    first, *_ = await ledger.split(taken)
    await ledger.finish(first, [_result(first.destinations[0], first)])
    await ledger.split(taken)
    assert not written.hexists(keys.chunks(JOB), first.chunk_id)


def test_what_a_user_wrote_enters_without_control_characters(
    redis: Redis, redis_url: str, settings_for: Callable[..., Settings]
) -> None:
    """A name with half a surrogate pair ended `themes enqueue` in a traceback; the others reached the terminal raw."""
    odd = Destination("id", "Kyo\0to\x1b[2J\ud800", "Ja\npan", extra={"no\x07te\udfff": "a\tb\x9fc\x7f"})
    name = "ci\x1b]0;ties\udcff\n" + "x" * 50_000
    job = enqueue([odd], name=name, settings=settings_for(REDIS_URL=redis_url), redis=redis)
    clean = Destination("id", "Kyoto[2J\ufffd", "Ja pan", extra={"note\ufffd": "a\tbc"})
    ((_, packed),) = redis.hgetall(keys.chunks(job.job_id)).items()
    assert unpack(packed, Chunk).destinations == (clean,)
    assert redis.hvals(keys.labels(job.job_id)) == ["Kyoto[2J\ufffd, Ja pan".encode()]
    entries = [unpack(fields[b"b"], StreamEntry) for _, fields in redis.xrange(keys.RESULTS)]
    assert [entry.destinations for entry in entries if isinstance(entry, JobInputs)] == [(clean,)]
    found = status(redis, job.job_id).name
    assert found == "ci]0;ties\ufffd " + "x" * 188 + "…"
    assert len(found) == 200


@pytest.mark.parametrize(("are_distinct", "total"), [(False, 3), (True, 4)])
def test_destinations_that_are_said_to_be_distinct_are_not_compared_again(
    redis: Redis, redis_url: str, settings_for: Callable[..., Settings], are_distinct: bool, total: int
) -> None:
    rows = [*NAMES, NAMES[0]]
    job = enqueue(rows, are_distinct=are_distinct, settings=settings_for(REDIS_URL=redis_url), redis=redis)
    assert job.total == total
