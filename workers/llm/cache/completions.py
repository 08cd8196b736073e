"""Where completions outlive a process: in Redis, for all workers; or in a file, where there is no Redis.

Both say `StoreAwayError` while they cannot be used: the cache then goes on with its memory.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from redis import RedisError
from redis.asyncio import Redis

from tasks import keys
from tasks.errors import RetryableError

#: Seconds that Redis may take before the process goes on by itself.
REDIS_TIMEOUT_SECONDS: Final = 5.0


class StoreAwayError(RetryableError):
    """It cannot be read or written now; nothing is lost but time."""


class CompletionStore(Protocol):
    """Packed completions by key, each for a time."""

    async def read(self, wanted: Sequence[str]) -> list[bytes | None]:
        """What is stored under some keys, None where there is nothing. Raises `StoreAwayError`."""

    async def write(self, stored: Mapping[str, bytes], *, ttl_ms: int) -> None:
        """Store all of these. Raises `StoreAwayError`."""


class RedisCompletions:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def read(self, wanted: Sequence[str]) -> list[bytes | None]:
        async with translated():
            values: Any = await self._redis.mget([keys.cache(key) for key in wanted])
            return list(values)

    async def write(self, stored: Mapping[str, bytes], *, ttl_ms: int) -> None:
        async with translated(), self._redis.pipeline(transaction=False) as pipeline:
            for key, packed in stored.items():
                pipeline.set(keys.cache(key), packed, px=ttl_ms)
            await pipeline.execute()


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_SECONDS):
            yield
    except (RedisError, OSError, TimeoutError) as exc:
        raise StoreAwayError(f"Redis does not answer ({str(exc) or type(exc).__name__})") from exc
