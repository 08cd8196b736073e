"""Reports at intervals, and one when the process ends."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from redis import RedisError

#: Seconds that the last report of a process that ends may take.
LAST_SECONDS: Final = 2.0


async def report_periodically(
    report: Callable[[], Awaitable[Any]],
    pause: Callable[[], Awaitable[Any]],
    log: logging.Logger,
    missed: str,
    *errors: type[Exception],
) -> None:
    """Report and pause until cancelled, then report a last time.

    Errors of Redis, and the further `errors`, are logged as `missed`: what was not reported is reported next time.
    """
    expected: tuple[type[Exception], ...] = (RedisError, OSError, *errors)

    async def attempt() -> None:
        try:
            await report()
        except expected as exc:
            log.debug(missed, exc)

    try:
        while True:
            await attempt()
            await pause()
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await attempt()
