"""Completions that were paid for once: at hand in memory, and kept in Redis for all workers.

Where there is no Redis a file keeps them instead (`workers.local.state_file`).

Only validated answers are stored. Redis lost in the middle costs speed, never a job: the memory tier goes on alone, it
is said once, and once when Redis is back, which is used again as soon as it answers. Reads that come together travel
together, and so do writes: a round of the graph is one MGET.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec
from redis.asyncio import Redis

from workers.llm.cache import codec
from workers.llm.cache.codec import CodecError
from workers.llm.cache.completions import CompletionStore, RedisCompletions, StoreAwayError
from workers.llm.cache.memory import MIB, MemoryTier
from workers.llm.cache.tally import CacheTally

log = logging.getLogger("themes.cache")

#: Seconds for which Redis is left alone after an error.
REDIS_PAUSE_SECONDS: Final = 2.0


class CachedCompletion(msgspec.Struct, frozen=True):
    """A validated answer, which model gave it, and what it has cost once."""

    value: Any
    model: str
    prompt_tokens: int
    completion_tokens: int


#: Whether a value is what the prompt's schema asks for.
Fits = Callable[[Any], bool]
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(CachedCompletion)


def _anything(_: Any) -> bool:
    return True


def decode(stored: bytes) -> CachedCompletion:
    """The completion that is stored so.

    Raises:
        CodecError: it is corrupt, foreign or too new.
    """
    try:
        return _decoder.decode(codec.decode(stored))
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise CodecError(f"no completion: {exc}") from exc


class PersistentLLMCache:
    """Two tiers: memory, then `store`: Redis, or a file; None where the persistent tier is switched off.

    Methods that take a `tally` count in it too, beside the process's own. `fits` says whether a value is of use: what
    was stored under an older schema, or by hand, is not served.
    """

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
        self._memory = MemoryTier(max_memory_mb * MIB, pressure_bytes=pressure_mb * MIB)
        self._ttl_ms = int(ttl_days * 86_400_000)
        self._codec = codec if compress else "raw"
        self._paused_until = 0.0
        self._away_since: float | None = None
        self._away_seconds = 0.0
        #: Times that the store was found away.
        self.outages = 0
        self._asked: dict[str, asyncio.Future[bytes | None]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._unwritten: dict[str, bytes] = {}
        self._writer: asyncio.Task[None] | None = None
        self._tally = CacheTally()

    def __repr__(self) -> str:
        hits = f"memory_hits={self._tally.memory_hits} redis_hits={self._tally.redis_hits}"
        return f"<PersistentLLMCache store={self.state} {hits} misses={self._tally.misses} {self._memory!r}>"

    @property
    def state(self) -> Literal["off", "on", "away"]:
        """Of the persistent tier: switched off, in use, or away, so that memory goes on alone."""
        if self._store is None:
            return "off"
        return "on" if self._away_since is None else "away"

    @property
    def away_seconds(self) -> float:
        """Seconds that the persistent tier was away, the present outage included."""
        now = 0.0 if self._away_since is None else time.monotonic() - self._away_since
        return self._away_seconds + now

    @property
    def tally(self) -> CacheTally:
        """Counts since the process started."""
        self._tally.evictions = self._memory.evictions
        return self._tally

    @property
    def memory_bytes(self) -> int:
        """Bytes that the memory tier holds."""
        return self._memory.size_bytes

    @property
    def memory(self) -> MemoryTier:
        """What this process has at hand."""
        return self._memory

    @property
    def is_shared(self) -> bool:
        """Whether other processes see what is stored here."""
        return self._store is not None and not self._is_paused()

    @property
    def ttl_ms(self) -> int:
        """Milliseconds that a completion stays."""
        return self._ttl_ms

    async def get(self, key: str, tally: CacheTally | None = None, fits: Fits = _anything) -> CachedCompletion | None:
        """The completion stored under a key, or None."""
        found = await self.find(key, tally, fits)
        if found is None:
            self.missed(tally)
        return found

    async def find(self, key: str, tally: CacheTally | None = None, fits: Fits = _anything) -> CachedCompletion | None:
        """As `get`, without counting a miss: who looks elsewhere first says `missed` when that was in vain."""
        found = self.at_hand(key, tally, fits)
        if found is None and self.is_shared:
            stored = await self._read(key)
            found = self.accept(key, stored, tally, fits) if stored is not None else None
        return found

    async def get_many(
        self, wanted: Sequence[str], tally: CacheTally | None = None, fits: Fits = _anything
    ) -> list[CachedCompletion | None]:
        """The completions stored under some keys, None where there is none; one MGET for all that is not in memory."""
        found = [self.at_hand(key, tally, fits) for key in wanted]
        left = [key for key, completion in zip(wanted, found, strict=True) if completion is None]
        if left and self.is_shared:
            stored = dict(zip(left, await self._mget(left), strict=True))
            for number, key in enumerate(wanted):
                packed = stored.get(key)
                if found[number] is None and packed is not None:
                    found[number] = self.accept(key, packed, tally, fits)
        for completion in found:
            if completion is None:
                self.missed(tally)
        return found

    def at_hand(self, key: str, tally: CacheTally | None = None, fits: Fits = _anything) -> CachedCompletion | None:
        """The completion that memory holds under a key, counted as a hit; None is not counted."""
        stored = self._memory.get(key)
        found = None if stored is None else self.read(key, stored, tally, fits)
        if found is not None:
            self._tally.memory_hits += 1
            if tally is not None:
                tally.memory_hits += 1
        return found

    def accept(
        self, key: str, stored: bytes, tally: CacheTally | None = None, fits: Fits = _anything
    ) -> CachedCompletion | None:
        """Read what came from Redis, count it as a hit there and keep it at hand; None when it is of no use."""
        found = self.read(key, stored, tally, fits)
        if found is not None:
            self._memory.put(key, stored)
            self._tally.redis_hits += 1
            if tally is not None:
                tally.redis_hits += 1
        return found

    def keep(self, key: str, stored: bytes) -> None:
        """Keep at hand what somebody else has stored, without counting it."""
        self._memory.put(key, stored)

    def missed(self, tally: CacheTally | None = None) -> None:
        """Count a question that the cache did not answer."""
        self._tally.misses += 1
        if tally is not None:
            tally.misses += 1

    def joined(self, tally: CacheTally | None = None) -> None:
        """Count a question that was answered together with an equal one."""
        self._tally.coalesced += 1
        if tally is not None:
            tally.coalesced += 1

    def saved(self, found: CachedCompletion, usd: float | None, tally: CacheTally | None = None) -> None:
        """Count what a hit has saved; `usd` None where its model has no price."""
        self._tally.save(found.prompt_tokens, found.completion_tokens, usd)
        if tally is not None:
            tally.save(found.prompt_tokens, found.completion_tokens, usd)

    def read(
        self, key: str, stored: bytes, tally: CacheTally | None = None, fits: Fits = _anything
    ) -> CachedCompletion | None:
        """Decode what is stored under a key; None, counted, when it is of no use."""
        try:
            found = decode(stored)
            if fits(found.value):
                return found
            why = "not what its prompt asks for"
        except CodecError as exc:
            why = str(exc)
        # Corrupt, foreign or of a newer version: a miss; the next answer overwrites it.
        self._tally.corrupt += 1
        if tally is not None:
            tally.corrupt += 1
        self._memory.discard(key)
        log.warning("action=cache_corrupt key=%s… is a miss: %s", key[:12], why)
        return None

    def encode(self, completion: CachedCompletion, tally: CacheTally | None = None) -> bytes:
        """What is stored for a completion."""
        raw = _encoder.encode(completion)
        stored = codec.encode(raw, self._codec)
        for one in (self._tally, tally):
            if one is not None:
                one.bytes_raw += len(raw)
                one.bytes_stored += len(stored)
        return stored

    def remember(self, key: str, stored: bytes, tally: CacheTally | None = None) -> None:
        """Keep at hand, and count, what is stored in Redis by another way."""
        self._memory.put(key, stored)
        self._tally.stores += 1
        if tally is not None:
            tally.stores += 1

    async def put(self, key: str, completion: CachedCompletion, tally: CacheTally | None = None) -> None:
        """Store a validated completion in both tiers."""
        stored = self.encode(completion, tally)
        self.remember(key, stored, tally)
        if not self.is_shared:
            return
        self._unwritten[key] = stored
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="cache writer")
        await asyncio.shield(self._writer)

    async def close(self) -> None:
        """Let what is under way end."""
        tasks = [task for task in (self._reader, self._writer) if task]
        if tasks:
            await asyncio.wait(tasks)

    async def _read(self, key: str) -> bytes | None:
        future = self._asked.get(key)
        if future is None:
            future = self._asked[key] = asyncio.get_running_loop().create_future()
            if self._reader is None or self._reader.done():
                self._reader = asyncio.create_task(self._read_all(), name="cache reader")
        return await asyncio.shield(future)

    async def _read_all(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, {}
            values: Sequence[bytes | None] = [None] * len(asked)
            try:
                values = await self._mget(list(asked))
            finally:
                for future, value in zip(asked.values(), values, strict=True):
                    if not future.done():
                        future.set_result(value)

    async def _mget(self, wanted: Sequence[str]) -> list[bytes | None]:
        try:
            if self._store is not None:
                values = await self._store.read(wanted)
                self.answered()
                return values
        except StoreAwayError as exc:
            self._pause(exc)
        return [None] * len(wanted)

    async def _write_all(self) -> None:
        while self._unwritten and self._store is not None:
            unwritten, self._unwritten = self._unwritten, {}
            try:
                await self._store.write(unwritten, ttl_ms=self._ttl_ms)
                self.answered()
            except StoreAwayError as exc:
                self._pause(exc)

    def answered(self) -> None:
        """The store is there; who has just spoken with the same Redis may say so too."""
        if self._away_since is None:
            return
        self._away_seconds, seconds = self.away_seconds, time.monotonic() - self._away_since
        self._away_since, self._paused_until = None, 0.0
        log.info("action=cache_restored after %.1f s completions are shared again", seconds)

    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def _pause(self, exc: Exception) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()
            self.outages += 1
            log.warning("action=cache_degraded the memory cache goes on alone: %s", exc)
        self._paused_until = time.monotonic() + REDIS_PAUSE_SECONDS
