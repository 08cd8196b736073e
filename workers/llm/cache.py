"""Completions that were paid for once: at hand in memory, and shared by all workers in Redis.

Only validated answers are stored. Redis lost in the middle costs speed, never a job: the memory tier goes on alone, it
is said once, and Redis is used again as soon as it answers.
"""

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from typing import Any, Final

import msgspec
import psutil
from redis import RedisError
from redis.asyncio import Redis

from tasks import keys
from tasks.messages import WireError, pack, unpack

log = logging.getLogger("themes.cache")

#: Bytes that Python needs around an entry of the memory tier, beyond its packed value.
ENTRY_OVERHEAD_BYTES: Final = 400
#: Seconds for which Redis is left alone after an error.
REDIS_PAUSE_SECONDS: Final = 2.0
#: Seconds between two looks at the process's size.
MEMORY_CHECK_SECONDS: Final = 1.0
MIB: Final = 1024 * 1024


class CachedCompletion(msgspec.Struct, frozen=True):
    """A validated answer, and which model gave it."""

    value: Any
    model: str
    prompt_tokens: int
    completion_tokens: int


class MemoryTier:
    """Packed completions, the least recently used leaving first when `max_bytes` are exceeded."""

    def __init__(self, max_bytes: int, *, pressure_bytes: int) -> None:
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self._max_bytes = max_bytes
        self._pressure_bytes = pressure_bytes
        self._bytes = 0
        self._checked_at = 0.0
        self._process = psutil.Process()
        self.evictions = 0

    def __repr__(self) -> str:
        return f"<MemoryTier entries={len(self._entries)} bytes={self._bytes} max={self._max_bytes}>"

    @property
    def size_bytes(self) -> int:
        """Bytes held, overhead included."""
        return self._bytes

    def get(self, key: str) -> bytes | None:
        """The packed value, which thereby becomes the most recently used."""
        packed = self._entries.get(key)
        if packed is not None:
            self._entries.move_to_end(key)
        return packed

    def put(self, key: str, packed: bytes) -> None:
        """Keep a value, and let the oldest go where there is no room."""
        self.discard(key)
        self._entries[key] = packed
        self._bytes += len(packed) + ENTRY_OVERHEAD_BYTES
        self._shrink_to(self._max_bytes)
        self._relieve_pressure()

    def discard(self, key: str) -> None:
        """Forget a value."""
        packed = self._entries.pop(key, None)
        if packed is not None:
            self._bytes -= len(packed) + ENTRY_OVERHEAD_BYTES

    def _shrink_to(self, max_bytes: int) -> None:
        while self._bytes > max_bytes and self._entries:
            _, packed = self._entries.popitem(last=False)
            self._bytes -= len(packed) + ENTRY_OVERHEAD_BYTES
            self.evictions += 1

    def _relieve_pressure(self) -> None:
        now = time.monotonic()
        if now - self._checked_at < MEMORY_CHECK_SECONDS:
            return
        self._checked_at = now
        rss = self._process.memory_info().rss
        if rss > self._pressure_bytes and self._bytes > MIB:
            log.warning(
                "action=cache_shrink %d MiB resident, memory_pressure_threshold_mb is %d: half of the cache goes",
                rss // MIB, self._pressure_bytes // MIB,
            )  # fmt: skip
            self._shrink_to(self._bytes // 2)


class PersistentLLMCache:
    """Two tiers: memory, then Redis. `redis` is None where the persistent tier is switched off."""

    def __init__(
        self,
        redis: Redis | None,
        *,
        max_memory_mb: int,
        pressure_mb: int,
        ttl_days: float,
        compress: bool,
    ) -> None:
        self._redis = redis
        self._memory = MemoryTier(max_memory_mb * MIB, pressure_bytes=pressure_mb * MIB)
        self._ttl_ms = int(ttl_days * 86_400_000)
        self._compress = compress
        self._paused_until = 0.0
        self._asked: dict[str, asyncio.Future[bytes | None]] = {}
        self._reader: asyncio.Task[None] | None = None
        self.hits = {"memory": 0, "redis": 0}
        self.misses = 0
        self.stores = 0
        self.corrupt = 0

    def __repr__(self) -> str:
        tier = "off" if self._redis is None else "paused" if self._is_paused() else "on"
        return f"<PersistentLLMCache redis={tier} hits={self.hits} misses={self.misses} memory={self._memory!r}>"

    def statistics(self) -> dict[str, int]:
        """Counts since the process started."""
        return {
            "memory_hits": self.hits["memory"],
            "redis_hits": self.hits["redis"],
            "misses": self.misses,
            "stores": self.stores,
            "corrupt": self.corrupt,
            "evictions": self._memory.evictions,
            "memory_bytes": self._memory.size_bytes,
        }

    async def get(self, key: str) -> CachedCompletion | None:
        """The completion stored under a key, or None.

        Gets that are made while a read is being prepared travel together: a round of the graph is one MGET.
        """
        packed = self._memory.get(key)
        if packed is not None and (found := self.read(key, packed)):
            self.hits["memory"] += 1
            return found
        if self._redis is not None and not self._is_paused():
            packed = await self._read(key)
            if packed is not None and (found := self.read(key, packed)):
                self.hits["redis"] += 1
                self._memory.put(key, packed)
                return found
        self.misses += 1
        return None

    @property
    def is_shared(self) -> bool:
        """Whether other processes see what is stored here."""
        return self._redis is not None and not self._is_paused()

    @property
    def ttl_ms(self) -> int:
        """Milliseconds that a completion stays."""
        return self._ttl_ms

    def encode(self, completion: CachedCompletion) -> bytes:
        """What is stored."""
        return pack(completion, compress=self._compress)

    def accept(self, key: str, stored: bytes) -> CachedCompletion | None:
        """Read what came from Redis by another way, and keep it at hand; None when it is unreadable."""
        found = self.read(key, stored)
        if found is not None:
            self.hits["redis"] += 1
            self._memory.put(key, stored)
        return found

    def remember(self, key: str, stored: bytes) -> None:
        """Keep at hand what is stored in Redis by another way."""
        self._memory.put(key, stored)
        self.stores += 1

    async def put(self, key: str, completion: CachedCompletion) -> None:
        """Store a validated completion in both tiers."""
        packed = self.encode(completion)
        self.remember(key, packed)
        if self._redis is None or self._is_paused():
            return
        try:
            await self._redis.set(keys.cache(key), packed, px=self._ttl_ms)
        except (RedisError, OSError) as exc:
            self._pause(exc)

    async def close(self) -> None:
        """Let a read under way end."""
        if self._reader:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader

    def read(self, key: str, packed: bytes) -> CachedCompletion | None:
        """Decode what is stored under a key; None, counted, when it is unreadable."""
        try:
            completion: CachedCompletion = unpack(packed, CachedCompletion)
            return completion
        except WireError as exc:
            # Corrupt, foreign or of a newer version: a miss; the next answer overwrites it.
            self.corrupt += 1
            self._memory.discard(key)
            log.warning("action=cache_corrupt key=%s… is a miss: %s", key[:12], exc)
            return None

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
            values: list[Any] = [None] * len(asked)
            try:
                if self._redis is not None:
                    values = await self._redis.mget([keys.cache(key) for key in asked])
            except (RedisError, OSError) as exc:
                self._pause(exc)
            finally:
                for future, value in zip(asked.values(), values, strict=True):
                    if not future.done():
                        future.set_result(value)

    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def _pause(self, exc: Exception) -> None:
        if not self._is_paused():
            log.warning("action=cache_degraded Redis does not answer, the memory cache goes on alone: %s", exc)
        self._paused_until = time.monotonic() + REDIS_PAUSE_SECONDS
