"""What is left to do, in Redis: chunks, their holders, and until when.

Redis holds what is left to do, the database what is done; Celery messages are wake-up calls. Each step that must not be
torn apart is one Lua script, so a killed worker, a lost reply or a second delivery leaves the ledger right.

Leases are a sorted set a job, by the time they end: the sweeper finds the dead ones with one range query, and counts
the waiting ones without touching 20,000 keys.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import msgspec
from redis import ResponseError
from redis.asyncio import Redis as AsyncRedis

from tasks import keys
from tasks.connection import text_of
from tasks.errors import JobPausedError, UnreadableError
from tasks.frames import WireError
from tasks.jobs.events import encode
from tasks.lua import lua
from tasks.messages import Chunk, Destination, Event, JobInputs, Result, Spent, pack, unpack
from tasks.storable import clean_destination, entry_fields

log = logging.getLogger("themes.ledger")

_TAKE: Final = lua(__file__, "take")
_RENEW: Final = lua(__file__, "renew")
_FINISH: Final = lua(__file__, "finish")
_GIVE_BACK: Final = lua(__file__, "give_back")
_PARK: Final = lua(__file__, "park")
_HAND_OFF: Final = lua(__file__, "hand_off")
_SPLIT: Final = lua(__file__, "split")
_SWEEP: Final = lua(__file__, "sweep")
PAUSE: Final = lua(__file__, "pause")


class Taking(StrEnum):
    TAKEN = "taken"
    GONE = "gone"
    HELD = "held"
    FULL = "full"
    PAUSED = "paused"


#: When the lease of a parked chunk ends: never by itself, or so many seconds after its deadline, when nothing is to be
#: waited for any more. And what `park` says of one whose answers are there.
NEVER_MS: Final = 9_000_000_000_000_000
GRACE_SECONDS: Final = 30.0
ANSWERED: Final = 2


def pause_arguments(
    job_id: str, reason: str, message: str, limit: str = "", until: float | None = None
) -> list[str | float | bytes]:
    """The arguments of `PAUSE`. A `limit` is the budget's that was too small, in nano-dollars.

    `until`: when the job goes on by itself, in seconds since 1970.
    """
    at = time.time()
    event = Event(type="job.paused", job_id=job_id, at=at, data={"reason": reason, "message": message})
    return [reason, limit, at, encode(event)["e"], message, keys.CONTROL, job_id, "" if until is None else until]


@dataclass(frozen=True, slots=True)
class Taken:
    """A chunk in our hands. `deliveries` counts this one; `finished` are destinations already on the stream."""

    chunk: Chunk
    deliveries: int
    finished: frozenset[str]


def write_chunks(pipeline: Any, job_id: str, labelled: Iterable[tuple[Chunk, str]], *, compress: bool) -> None:
    """Queue the commands that enter chunks and their destinations: the ledger first, messages after."""
    inputs: list[Destination] = []
    for raw, label in labelled:
        chunk = msgspec.structs.replace(raw, destinations=tuple(map(clean_destination, raw.destinations)))
        pipeline.hset(keys.chunks(job_id), chunk.chunk_id, pack(chunk, compress=compress))
        pipeline.hset(keys.labels(job_id), chunk.chunk_id, label)
        inputs.extend(chunk.destinations)
    for start in range(0, len(inputs), 500):
        entry = JobInputs(job_id=job_id, destinations=tuple(inputs[start : start + 500]))
        pipeline.xadd(keys.RESULTS, entry_fields(entry, compress=compress))


class Ledger:
    """A worker's or sweeper's access to the books.

    Errors of Redis pass through: the caller knows whether to wait or to give up.
    """

    def __init__(self, redis: AsyncRedis, *, token: str, lease_seconds: float, compress: bool = True) -> None:
        self._redis = redis
        self._token = token
        self._lease_ms = int(lease_seconds * 1000)
        self._compress = compress
        self._take = redis.register_script(_TAKE)
        self._renew = redis.register_script(_RENEW)
        self._finish = redis.register_script(_FINISH)
        self._give_back = redis.register_script(_GIVE_BACK)
        self._park = redis.register_script(_PARK)
        self._hand_off = redis.register_script(_HAND_OFF)
        self._split = redis.register_script(_SPLIT)
        self._pause = redis.register_script(PAUSE)
        self._sweep = redis.register_script(_SWEEP)

    async def take(self, job_id: str, chunk_id: str, *, max_unwritten: int) -> Taken | Taking:
        """Claim a chunk; anything but `Taken` says why not.

        FULL means that the consumer is more than `max_unwritten` results behind: ask again later. A lease of our own
        is taken again: the reply to an earlier call was lost (a worker asks once for a chunk). A chunk that
        cannot be read is taken off the books, and is GONE.

        Raises:
            UnreadableError: a key of the job holds something else.
        """
        try:
            reply = await self._asked(job_id, chunk_id, max_unwritten)
        except ResponseError as exc:
            if "WRONGTYPE" not in str(exc):
                raise
            raise UnreadableError(f"job {job_id}: one of its keys in Redis holds something else") from exc
        outcome = Taking(reply[0].decode())
        if outcome is not Taking.TAKEN:
            return outcome
        finished = frozenset(member.decode() for member in reply[3])
        try:
            return Taken(chunk=unpack(reply[1], Chunk), deliveries=int(reply[2]), finished=finished)
        except WireError as exc:
            log.error("action=chunk_unreadable job_id=%s chunk_id=%s is dropped: %s", job_id, chunk_id, exc)  # noqa: TRY400
            await self._drop(job_id, chunk_id)
            return Taking.GONE

    async def _asked(self, job_id: str, chunk_id: str, max_unwritten: int) -> Any:
        books = [key_of(job_id) for key_of in (keys.chunks, keys.leases, keys.owners, keys.deliveries)]
        return await self._take(
            keys=[*books, keys.finished(job_id, chunk_id), keys.RESULTS, keys.job(job_id)],
            args=[chunk_id, self._token, self._lease_ms, max_unwritten],
        )

    async def _drop(self, job_id: str, chunk_id: str) -> None:
        """Take a chunk off the books; the sweeper ends its destinations (`workers.results.lost`)."""
        async with self._redis.pipeline(transaction=True) as pipeline:
            for books in (keys.chunks, keys.owners, keys.deliveries, keys.labels):
                pipeline.hdel(books(job_id), chunk_id)
            pipeline.zrem(keys.leases(job_id), chunk_id)
            pipeline.delete(keys.finished(job_id, chunk_id))
            await pipeline.execute()

    async def renew(self, job_id: str, chunk_ids: Sequence[str]) -> list[str]:
        """Prolong our leases by one lease; returns the chunks that are no longer ours."""
        lost = await self._renew(
            keys=[keys.leases(job_id), keys.owners(job_id)], args=[self._token, self._lease_ms, *chunk_ids]
        )
        return [chunk_id.decode() for chunk_id in lost]

    async def finish(self, chunk: Chunk, results: Sequence[Result]) -> list[bool]:
        """Publish results of a chunk's destinations and tick these off; of each, False when that had been done."""
        described = [
            part
            for result in results
            for part in (result.destination_id, entry_fields(result, compress=self._compress)["b"])
        ]
        done = await self._finish(
            keys=[*_books_of(chunk), keys.RESULTS], args=[chunk.chunk_id, len(chunk.destinations), *described]
        )
        return [bool(each) for each in done]

    async def give_back(self, job_id: str, chunk_id: str) -> bool:
        """End our lease early and uncount the delivery; False when it was no longer ours."""
        given = await self._give_back(
            keys=[keys.leases(job_id), keys.owners(job_id), keys.deliveries(job_id)],
            args=[chunk_id, self._token],
        )
        return bool(given)

    async def park(self, chunk: Chunk, *, deadline_at: float | None = None) -> bool:
        """End our lease until the chunk's questions have their answers; False when they have come meanwhile.

        Nobody takes it until then, or until a while after the job's deadline; the delivery is uncounted.
        """
        until = NEVER_MS if deadline_at is None else int((max(deadline_at, time.time()) + GRACE_SECONDS) * 1000)
        job_id = chunk.job_id
        books = [key_of(job_id) for key_of in (keys.chunks, keys.leases, keys.owners, keys.deliveries)]
        # It waits in no queue.
        payload = pack(msgspec.structs.replace(chunk, queued_at=0.0), compress=self._compress)
        parked = await self._park(
            keys=[*books, keys.parked(job_id, chunk.chunk_id)], args=[chunk.chunk_id, self._token, until, payload]
        )
        return int(parked) != ANSWERED

    async def pause(self, error: JobPausedError) -> bool:
        """Pause a job that cannot go on.

        False when there is nothing to pause: the budget has been raised meanwhile, or the job has ended.
        """
        job_id, limit = error.job_id, error.limit_nano
        paused = await self._pause(
            keys=[keys.job(job_id), keys.budget(job_id), keys.events(job_id)],
            args=pause_arguments(job_id, error.reason, str(error), "" if limit is None else str(limit), error.until),
        )
        return bool(paused)

    async def book(self, spent: Spent) -> None:
        """Put on the stream what a destination has cost without an outcome. A repetition changes nothing."""
        await self._redis.xadd(keys.RESULTS, entry_fields(spent, compress=self._compress))

    async def stopped(self, job_ids: Sequence[str]) -> dict[str, str]:
        """Which of these jobs are to go no further, and why."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hmget(keys.job(job_id), "state", "paused")
            found = await pipeline.execute(raise_on_error=False)
        reasons: dict[str, str] = {}
        for job_id, reply in zip(job_ids, found, strict=True):
            if isinstance(reply, Exception):
                continue  # its entry cannot be read: nothing says that it is to go no further
            state, paused = reply
            if state == b"cancelled":
                reasons[job_id] = "the job was cancelled"
            elif paused:
                reasons[job_id] = "the job is paused"
        return reasons

    async def split(self, taken: Taken) -> list[Chunk]:
        """Replace a chunk by chunks of one for what it has left; returns them. Each is as often delivered as it was."""
        chunk = taken.chunk
        left = [item for item in chunk.destinations if item.id not in taken.finished]
        singles = [
            Chunk(chunk.job_id, f"{chunk.chunk_id}.{number}", (item,), attempt=chunk.attempt, queued_at=time.time())
            for number, item in enumerate(left)
        ]
        described = [
            part
            for one in singles
            for part in (one.chunk_id, pack(one, compress=self._compress), one.destinations[0].label)
        ]
        await self._split(keys=_books_of(chunk), args=[chunk.chunk_id, taken.deliveries - 1, *described])
        return singles

    async def hand_off(self, chunk: Chunk, new: Chunk, label: str) -> bool:
        """Move destinations that were not started from a chunk of ours into a new one, for other workers.

        False when the chunk is no longer ours: then another worker has them already.
        """
        given = await self._hand_off(
            keys=_books_of(chunk),
            args=[
                chunk.chunk_id,
                self._token,
                len(chunk.destinations),
                new.chunk_id,
                pack(new, compress=self._compress),
                label,
                *(item.id for item in new.destinations),
            ],
        )
        return bool(given)

    async def sweep(self, job_id: str) -> tuple[int, list[str]]:
        """End dead leases. Returns how many chunks wait without one, and the ids whose lease has just died."""
        waiting, *dead = await self._sweep(
            keys=[keys.leases(job_id), keys.owners(job_id), keys.chunks(job_id), keys.job(job_id)]
        )
        return int(waiting), [chunk_id.decode() for chunk_id in dead]

    async def oldest_waiting(self, job_id: str, count: int) -> list[str]:
        """At most `count` chunk ids without a lease, in the order in which the producer made them."""
        held = set(await self._redis.zrange(keys.leases(job_id), 0, -1))
        known = await self._redis.hkeys(keys.chunks(job_id))
        return sorted({text_of(one) for one in known} - {text_of(one) for one in held})[:count]

    @staticmethod
    async def queued(broker: AsyncRedis) -> dict[int, int]:
        """Messages in the Celery queue by their priority: 9 is served first."""
        names = keys.queue_keys()
        async with broker.pipeline(transaction=False) as pipeline:
            for key in names:
                pipeline.llen(key)
            counts = await pipeline.execute()
        return {9 - step: int(count) for step, count in zip(keys.PRIORITIES, counts, strict=True)}


def _books_of(chunk: Chunk) -> list[str]:
    """The keys that a chunk's life is written in."""
    job_id = chunk.job_id
    names = (keys.chunks, keys.leases, keys.owners, keys.deliveries, keys.labels)
    return [*(name(job_id) for name in names), keys.finished(job_id, chunk.chunk_id)]
