"""Completions that were paid for once: in memory, and in Redis for all workers or in a file.

Only validated answers are stored. Redis lost in the middle costs speed, never a job: the memory tier goes on alone.
Reads that come together are one MGET, and so are writes one round trip.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec
from redis.asyncio import Redis

from workers.llm.cache import codec
from workers.llm.cache.codec import CodecError
from workers.llm.cache.completions import CompletionStore, RedisCompletions, StoreAwayError
from workers.llm.cache.memory import MIB, MemoryTier
from workers.llm.cache.stats import CacheStats
from workers.process.outage import Outage

log = logging.getLogger("themes.cache")


class CachedCompletion(msgspec.Struct, frozen=True, omit_defaults=True):
    """A validated answer, which model gave it, and what it has cost once.

    `payer`, `JOB DESTINATION ATTEMPT`, is told where a batch has answered: to its own destination it is no hit.
    """

    value: Any
    model: str
    prompt_tokens: int
    completion_tokens: int
    payer: str = ""


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(CachedCompletion)


def decode(stored: bytes) -> CachedCompletion:
    """The completion that is stored. Raises `CodecError`: it is corrupt, foreign or too new."""
    try:
        return _decoder.decode(codec.decode(stored))
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise CodecError(f"no completion: {exc}") from exc


class PersistentLLMCache:
    """Two tiers: memory, then `store`: Redis, or a file; None where the persistent tier is switched off."""

    def __init__(
        self,
        store: Redis | CompletionStore | None,
        *,
        max_memory_mb: int,
        pressure_mb: int,
        ttl_days: float,
        compress: bool,
        codec: str = "zstd",
    ) -> None:
        self._store = RedisCompletions(store) if isinstance(store, Redis) else store
        self.memory = MemoryTier(max_memory_mb * MIB, pressure_bytes=pressure_mb * MIB)
        #: Milliseconds that a completion stays.
        self.ttl_ms = int(ttl_days * 86_400_000)
        self._codec = codec if compress else "raw"
        #: Of the persistent tier.
        self.outage = Outage(
            log,
            lost="action=cache_degraded the memory cache goes on alone: %s",
            back="action=cache_restored completions are shared again",
        )
        self._asked: dict[str, asyncio.Future[bytes | None]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._unwritten: dict[str, bytes] = {}
        self._writer: asyncio.Task[None] | None = None
        self._stats = CacheStats()

    def __repr__(self) -> str:
        hits = f"memory_hits={self._stats.memory_hits} redis_hits={self._stats.redis_hits}"
        return f"<PersistentLLMCache store={self.state} {hits} misses={self._stats.misses} {self.memory!r}>"

    @property
    def state(self) -> Literal["off", "on", "away"]:
        """Of the persistent tier: switched off, in use, or away, so that memory goes on alone."""
        if self._store is None:
            return "off"
        return "away" if self.outage.is_on else "on"

    @property
    def stats(self) -> CacheStats:
        """Counts since the process started."""
        self._stats.evictions = self.memory.evictions
        return self._stats

    @property
    def is_shared(self) -> bool:
        """Whether other processes see what is stored here."""
        return self._store is not None and not self.outage.is_paused

    def lookup(
        self, key: str, *, is_valid: Callable[[Any], bool] = lambda _: True, stats: CacheStats | None = None
    ) -> "Lookup":
        """A prompt's place in the cache.

        `is_valid` tells whether a stored value is of use; one that was stored under an older schema, or by hand, is
        not. `stats` are the counts of the prompt's destination.
        """
        return Lookup(self, key, is_valid, (self._stats,) if stats is None else (self._stats, stats))

    def encode(self, completion: CachedCompletion) -> tuple[bytes, int]:
        """What is stored for a completion, and its bytes before compression."""
        raw = _encoder.encode(completion)
        return self.compressed(raw), len(raw)

    def compressed(self, raw: bytes) -> bytes:
        return codec.encode(raw, self._codec)

    async def read(self, key: str) -> bytes | None:
        """What the persistent tier holds under a key; reads that come together are one read of the store."""
        future = self._asked.get(key)
        if future is None:
            future = self._asked[key] = asyncio.get_running_loop().create_future()
            if self._reader is None or self._reader.done():
                self._reader = asyncio.create_task(self._read_all(), name="cache reader")
        return await asyncio.shield(future)

    async def write(self, key: str, stored: bytes) -> None:
        """Store under a key in the persistent tier; writes that come together are one write to the store."""
        self._unwritten[key] = stored
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="cache writer")
        await asyncio.shield(self._writer)

    async def close(self) -> None:
        tasks = [task for task in (self._reader, self._writer) if task]
        if tasks:
            await asyncio.wait(tasks)

    async def _read_all(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            values: Sequence[bytes | None] = [None] * len(asked)
            try:
                values = await self.read_all(list(asked))
            finally:
                for future, value in zip(asked.values(), values, strict=True):
                    if not future.done():
                        future.set_result(value)

    async def read_all(self, wanted: Sequence[str]) -> list[bytes | None]:
        """What the persistent tier holds under some keys, by one read."""
        try:
            if self._store is not None:
                values = await self._store.read(wanted)
                self.outage.end()
                return values
        except StoreAwayError as exc:
            self.outage.begin(exc)
        return [None] * len(wanted)

    async def _write_all(self) -> None:
        while self._unwritten and self._store is not None:
            unwritten, self._unwritten = self._unwritten, {}
            try:
                await self._store.write(unwritten, ttl_ms=self.ttl_ms)
                self.outage.end()
            except StoreAwayError as exc:
                self.outage.begin(exc)


class Lookup:
    """One prompt's place in the cache. Counts for the process, and for the prompt's destination."""

    __slots__ = ("_all_stats", "_cache", "_is_valid", "_key")

    def __init__(
        self, cache: PersistentLLMCache, key: str, is_valid: Callable[[Any], bool], all_stats: tuple[CacheStats, ...]
    ) -> None:
        self._cache = cache
        self._key = key
        self._is_valid = is_valid
        self._all_stats = all_stats

    def missed(self) -> None:
        for stats in self._all_stats:
            stats.misses += 1

    def coalesced(self) -> None:
        """Count that the prompt was answered together with an equal one."""
        for stats in self._all_stats:
            stats.coalesced += 1

    async def get(self) -> CachedCompletion | None:
        """The completion, or None, which is counted as a miss."""
        found = await self.find()
        if found is None:
            self.missed()
        return found

    async def find(self, *, own: str = "") -> CachedCompletion | None:
        """As `get`, without counting a miss; one that `own` has paid for is not counted as a hit."""
        found = self.in_memory(own=own)
        if found is None and self._cache.is_shared:
            stored = await self._cache.read(self._key)
            found = None if stored is None else self.accept(stored, own=own)
        return found

    def in_memory(self, *, own: str = "") -> CachedCompletion | None:
        """The completion that memory holds, counted as a hit; a miss is not counted."""
        stored = self._cache.memory.get(self._key)
        found = None if stored is None else self.decode(stored)
        if found is not None and not (own and found.payer == own):
            for stats in self._all_stats:
                stats.memory_hits += 1
        return found

    def accept(self, stored: bytes, *, own: str = "") -> CachedCompletion | None:
        """Read what came from Redis, count it as a hit there and keep it in memory; None when it is of no use."""
        found = self.decode(stored)
        if found is not None:
            self.keep(stored)
            if not (own and found.payer == own):
                for stats in self._all_stats:
                    stats.redis_hits += 1
        return found

    def decode(self, stored: bytes) -> CachedCompletion | None:
        """Decode what is stored; None, counted, when it is of no use."""
        try:
            found = decode(stored)
            if self._is_valid(found.value):
                return found
            why = "not what its prompt asks for"
        except CodecError as exc:
            why = str(exc)
        # Corrupt, foreign or of a newer version: a miss; the next answer overwrites it.
        for stats in self._all_stats:
            stats.corrupt += 1
        self._cache.memory.discard(self._key)
        log.warning("action=cache_corrupt key=%s… is a miss: %s", self._key[:12], why)
        return None

    def saved(self, found: CachedCompletion, usd: float | None) -> None:
        """Count what a hit has saved; `usd` None where its model has no price."""
        for stats in self._all_stats:
            stats.save(found.prompt_tokens, found.completion_tokens, usd)

    def keep(self, stored: bytes) -> None:
        """Keep in memory what is stored elsewhere, without counting it."""
        self._cache.memory.put(self._key, stored)

    def encode(self, completion: CachedCompletion) -> bytes:
        stored, raw_bytes = self._cache.encode(completion)
        for stats in self._all_stats:
            stats.bytes_raw += raw_bytes
            stats.bytes_stored += len(stored)
        return stored

    def remember(self, stored: bytes) -> None:
        """Keep in memory, and count, what goes to Redis with a flight."""
        self.keep(stored)
        for stats in self._all_stats:
            stats.stores += 1

    async def put(self, completion: CachedCompletion) -> None:
        stored = self.encode(completion)
        self.remember(stored)
        if self._cache.is_shared:
            await self._cache.write(self._key, stored)
