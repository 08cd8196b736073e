"""Entries of the cache that are made of others: one read where there would be many.

An entry lives no longer than any of those that it is made of. It is written a moment later than they are, many at a
time; a process that is killed before loses a short cut, and no answer.
"""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

from redis import RedisError
from redis.asyncio import Redis

from tasks import keys
from tasks.lua import lua
from workers.llm.cache.completions import REDIS_TIMEOUT_SECONDS
from workers.llm.cache.tiers import PersistentLLMCache

#: Seconds that entries wait for company: what they are made of is stored by then.
FLUSH_SECONDS: Final = 0.25
#: Entries that wait at most; what comes then is not kept.
MAX_WAITING: Final = 2_000
#: Entries of one round trip: their commands are held in memory twice.
WRITTEN_AT_ONCE: Final = 16

_KEEP: Final = lua(__file__, "keep_composite")


class Composites:
    """The composite entries in a cache's memory and in its Redis."""

    def __init__(self, redis: Redis, cache: PersistentLLMCache) -> None:
        self._redis = redis
        self._cache = cache
        self._keep = redis.register_script(_KEEP)
        #: By key: what is to be stored and the keys of its parts; None: it is to be dropped.
        self._waiting: dict[str, tuple[bytes, Sequence[str]] | None] = {}
        self._writer: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Composites waiting={len(self._waiting)} {self._cache!r}>"

    async def read(self, wanted: Sequence[str]) -> list[tuple[bytes | None, bool]]:
        """What is stored under each key, and whether memory had it."""
        places = [_place(key) for key in wanted]
        stored = [self._cache.memory.get(place) for place in places]
        lacking = [place for place, found in zip(places, stored, strict=True) if found is None]
        shared = await self._cache.read_all(lacking) if lacking and self._cache.is_shared else []
        others = iter(shared or [None] * len(lacking))
        return [(next(others), False) if found is None else (found, True) for found in stored]

    def remember(self, key: str, stored: bytes) -> None:
        """Keep in memory what was read."""
        self._cache.memory.put(_place(key), stored)

    def put(self, key: str, raw: bytes, parts: Sequence[str]) -> None:
        """Keep an entry that is made of the completions under these keys: in Redis, because memory has these."""
        if len(self._waiting) < MAX_WAITING and self._cache.is_shared:
            self._queue(key, (self._cache.compressed(raw), parts))

    def discard(self, key: str) -> None:
        """Forget an entry: some of its parts are newer."""
        self._cache.memory.discard(_place(key))
        self._queue(key, None)

    async def close(self) -> None:
        """Write what waits."""
        if self._writer is not None:
            await asyncio.wait({self._writer})

    def _queue(self, key: str, entry: tuple[bytes, Sequence[str]] | None) -> None:
        self._waiting[key] = entry
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="composites writer")

    async def _write_all(self) -> None:
        while self._waiting:
            await asyncio.sleep(FLUSH_SECONDS)
            for _ in range(0, len(self._waiting), WRITTEN_AT_ONCE):
                page = {key: self._waiting.pop(key) for key in list(islice(self._waiting, WRITTEN_AT_ONCE))}
                try:
                    async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
                        await self._write(page)
                except (RedisError, OSError, TimeoutError) as exc:
                    self._cache.outage.begin(exc)

    async def _write(self, page: Mapping[str, tuple[bytes, Sequence[str]] | None]) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key, entry in page.items():
                place = keys.cache(_place(key))
                if entry is None:
                    pipeline.unlink(place)
                else:
                    parts = [place, *map(keys.cache, entry[1])]
                    await self._keep(keys=parts, args=[entry[0]], client=pipeline)
            await pipeline.execute()


def _place(key: str) -> str:
    return f"{keys.COMPOSITE}{key}"
