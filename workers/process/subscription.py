"""Listening to a channel of Redis for as long as a process lives."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn

from redis import RedisError
from redis.asyncio import Redis

#: Seconds between two attempts to subscribe while Redis is away.
RETRY_SECONDS: Final = 1.0
#: Seconds that one read of the channel waits; below every socket timeout that can be set.
READ_SECONDS: Final = 0.5


async def listen(
    redis: Redis,
    channel: str,
    heard: Callable[[str], Awaitable[None]],
    *,
    listening: asyncio.Event,
    log: logging.Logger,
    unheard: str,
) -> NoReturn:
    """Pass each message of a channel to `heard`, until cancelled; `heard("")` is called after each subscription.

    A channel promises nothing: the caller must also read what it may have missed.

    Args:
        redis: reads strings as bytes.
        channel: its name.
        heard: takes a message, or "".
        listening: set while the channel is subscribed to.
        log: where an outage is logged, at DEBUG.
        unheard: the log template; it takes the error.
    """
    while True:
        try:
            async with redis.pubsub() as subscription:
                await subscription.subscribe(channel)
                await heard("")
                listening.set()
                while True:
                    message = await subscription.get_message(ignore_subscribe_messages=True, timeout=READ_SECONDS)
                    if message:
                        await heard(message["data"].decode("utf-8", "replace"))
        except (RedisError, OSError) as exc:
            log.debug(unheard, exc)
        listening.clear()
        await asyncio.sleep(RETRY_SECONDS)
