"""The results stream: a Redis Stream with one consumer group, read in batches and trimmed only behind the reader.

Never trimmed by length: `XADD MAXLEN` with a slow consumer dropped 700 of 1,000 unread results. Knows nothing of the
database; commands of Redis 6.2 only.
"""

import asyncio
import time
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from tasks import keys
from tasks.connection import text_of
from tasks.frames import WireError
from tasks.messages import StreamEntry, unpack
from tasks.storable import salvaged

#: Longest single blocking read, so that a consumer that is told to stop notices in time.
MAX_BLOCK_SECONDS: Final = 0.5
#: Reads that one flush interval is cut into: a batch that fills up early waits at most this part of it.
POLLS_PER_FLUSH: Final = 5
#: The one field of an entry: what `tasks.storable.entry_fields` makes.
ENTRY_FIELD: Final = b"b"

Fields = dict[bytes, bytes]


class RawEntry(NamedTuple):
    """One entry as it was read. `fields` is None when the entry was deleted while it was pending."""

    id: bytes
    fields: Fields | None

    @property
    def size_bytes(self) -> int:
        """Of its one field, as it travelled."""
        return len(self.fields.get(ENTRY_FIELD, b"")) if self.fields else 0


class DeadEntry(NamedTuple):
    """An entry that cannot be used, and why; and whose it is, where it says so."""

    raw: RawEntry
    reason: str
    job_id: str | None = None
    destination_id: str | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """A batch, understood: `ids[i]` is the stream's id of `entries[i]`."""

    ids: list[bytes]
    entries: list[StreamEntry]
    dead: list[DeadEntry]


def decode(batch: Iterable[RawEntry]) -> Decoded:
    """Tell the entries of a batch from what is none; a foreign or corrupt one never stops the others.

    A result that cannot be decoded but says whose it is ends its destination as a failure; it is a dead letter as well.
    """
    decoded = Decoded([], [], [])
    for raw in batch:
        if raw.fields is None:
            continue  # its entry was deleted while it was pending
        try:
            entry: StreamEntry = unpack(raw.fields[ENTRY_FIELD], StreamEntry)
        except KeyError:
            decoded.dead.append(DeadEntry(raw, f"no field {ENTRY_FIELD.decode()!r}"))
        except WireError as bad:
            saved = salvaged(raw.fields[ENTRY_FIELD], str(bad))
            if saved is not None:
                decoded.ids.append(raw.id)
                decoded.entries.append(saved)
            whose = (saved.job_id, saved.destination_id) if saved is not None else (None, None)
            decoded.dead.append(DeadEntry(raw, str(bad), *whose))
        else:
            decoded.ids.append(raw.id)
            decoded.entries.append(entry)
    return decoded


def behind(last_delivered: str, lowest_pending: str | None) -> str:
    """The lowest id that is still needed: everything below it is read and acknowledged."""
    milliseconds, _, number = last_delivered.partition("-")
    return lowest_pending or f"{milliseconds}-{int(number) + 1}"


class ResultsStream:
    """One consumer's view of the results stream.

    Args:
        redis: a client whose socket timeout is longer than `MAX_BLOCK_SECONDS`; not closed here.
        consumer: a name that no other process uses.
    """

    def __init__(self, redis: Redis, *, consumer: str) -> None:
        self._redis = redis
        self._consumer = consumer
        self._gathered_at = float("-inf")

    async def ensure_group(self) -> None:
        """Create the group, and the stream with it, so that it reads from the very first entry."""
        try:
            await self._redis.xgroup_create(keys.RESULTS, keys.GROUP, id="0", mkstream=True)
        except OutOfMemoryError:
            return  # a full Redis refuses before it looks; where there is none yet, the first read says so
        except ResponseError as bad:
            if not str(bad).startswith("BUSYGROUP"):
                raise

    async def gather(
        self, *, count: int, flush_seconds: float, stopping: asyncio.Event | None = None
    ) -> list[RawEntry]:
        """New entries: as soon as `count` are there, or `flush_seconds` after the last batch; [] when none came.

        So what comes after a pause is given at once, and while more comes than that, it comes in company.
        """
        batch = await self._read(count, MAX_BLOCK_SECONDS)
        flush_at = self._gathered_at + flush_seconds
        while batch and len(batch) < count and not (stopping and stopping.is_set()):
            left = flush_at - time.monotonic()
            if left <= 0:
                break
            await asyncio.sleep(min(left, flush_seconds / POLLS_PER_FLUSH))
            batch += await self._read(count - len(batch), None)
        if batch:
            self._gathered_at = time.monotonic()
        return batch

    async def unfinished(self, *, count: int) -> list[RawEntry]:
        """What this consumer has read and not acknowledged, oldest first: after a lost connection it is still due."""
        return _entries(await self._redis.xreadgroup(keys.GROUP, self._consumer, {keys.RESULTS: "0"}, count=count))

    async def claim(self, *, count: int, idle_seconds: float) -> int:
        """Take over what any consumer has read and then left alone for `idle_seconds`; how many entries that are.

        They are `unfinished` afterwards. (Ids only: for an entry that was deleted while it was pending, Redis 6.2
        would answer without its id, so it could never be acknowledged.)
        """
        idle_ms = int(idle_seconds * 1000)
        ids = await self._redis.xautoclaim(
            keys.RESULTS, keys.GROUP, self._consumer, min_idle_time=idle_ms, count=count, justid=True
        )
        return len(ids)

    async def ack(self, ids: Sequence[bytes]) -> None:
        if ids:
            await self._redis.xack(keys.RESULTS, keys.GROUP, *ids)

    async def is_settled(self) -> bool:
        """Whether nothing that any consumer has read is unacknowledged."""
        return not (await self._redis.xpending(keys.RESULTS, keys.GROUP))["pending"]

    async def trim(self) -> int:
        """Drop what everybody has read and acknowledged; how many entries that were."""
        groups = await self._redis.xinfo_groups(keys.RESULTS)
        ours = next((group for group in groups if text_of(group["name"]) == keys.GROUP), None)
        if ours is None:
            return 0
        # The group's position is read first: what is read in the meantime has a higher id.
        pending = await self._redis.xpending(keys.RESULTS, keys.GROUP)
        lowest = text_of(pending["min"]) if pending["pending"] else None
        needed = behind(text_of(ours["last-delivered-id"]), lowest)
        return int(await self._redis.xtrim(keys.RESULTS, minid=needed, approximate=False))

    async def leave(self) -> None:
        """Take this consumer's name off the group, unless it still has entries to its name: they would be lost."""
        consumers = await self._redis.xinfo_consumers(keys.RESULTS, keys.GROUP)
        ours = [one for one in consumers if text_of(one["name"]) == self._consumer]
        if ours and ours[0]["pending"] == 0:
            await self._redis.xgroup_delconsumer(keys.RESULTS, keys.GROUP, self._consumer)

    async def _read(self, count: int, block_seconds: float | None) -> list[RawEntry]:
        block = None if block_seconds is None else max(1, int(block_seconds * 1000))
        answer = self._redis.xreadgroup(keys.GROUP, self._consumer, {keys.RESULTS: ">"}, count=count, block=block)
        return _entries(await cast("Awaitable[Any]", answer))


def is_group_lost(error: ResponseError) -> bool:
    """Whether the group is gone: Redis came back empty, or the stream was deleted."""
    return str(error).startswith("NOGROUP") or "no such key" in str(error)


def _entries(answer: Any) -> list[RawEntry]:
    """The entries out of the answer to an XREADGROUP of one stream; a deleted one has no fields."""
    return [RawEntry(id_, fields or None) for _, entries in answer or () for id_, fields in entries]
