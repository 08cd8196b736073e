"""Removes from Redis what dead workers and ended jobs have left there, a little at each sweep.

These would stay for good, or for hours: kombu's record of a message whose worker died, keys of a job that a worker
touched after its end, and entries of the results stream that are read and acknowledged.
"""

import json
import logging
import time
from base64 import b64decode
from typing import Any, Final

from redis import ResponseError
from redis.asyncio import Redis

from tasks import keys
from tasks.connection import text_of
from tasks.lua import lua
from workers.results.stream import ResultsStream, is_group_lost

log = logging.getLogger("themes.sweeper")

#: Seconds after which an unacknowledged message is looked at: a living worker is done with most by then.
UNACKED_SECONDS: Final = 60.0
#: Messages, and keys of Redis, that are looked at in one sweep. A cache of millions is walked through over many sweeps.
LOOK_AT_ONCE: Final = 1_000

_EXPIRE: Final = lua(__file__, "expire")


class Leftovers:
    """Tidies up behind dead workers and ended jobs. `redis` has the jobs, `broker` the Celery queue."""

    def __init__(self, redis: Redis, broker: Redis) -> None:
        self._redis = redis
        self._broker = broker
        self._stream = ResultsStream(redis, consumer="sweeper")
        self._expire = redis.register_script(_EXPIRE)
        self._cursor = 0

    async def tidy(self) -> None:
        """One look. Errors of Redis pass through: the next look does the rest."""
        await self._forget_messages()
        await self._expire_keys()
        try:
            await self._stream.trim()
        except ResponseError as bad:
            # No stream yet: the consumer makes it.
            if not is_group_lost(bad):
                raise

    async def _forget_messages(self) -> None:
        """Remove kombu's records of messages whose chunk is gone: delivered again, they would find nothing to do."""
        before = time.time() - UNACKED_SECONDS
        tags: list[Any] = await self._broker.zrangebyscore(keys.UNACKED_INDEX, "-inf", before, 0, LOOK_AT_ONCE)
        if not tags:
            return
        kept = await self._broker.hmget(keys.UNACKED, tags)
        chunks = {tag: chunk for tag, raw in zip(tags, kept, strict=True) if (chunk := _chunk_of(raw))}
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id, chunk_id in chunks.values():
                pipeline.hexists(keys.chunks(job_id), chunk_id)
            # An error is no answer: another program has written something else under that key.
            answers = await pipeline.execute(raise_on_error=False)
        gone = [tag for tag, answer in zip(chunks, answers, strict=True) if answer == 0]
        if not gone:
            return
        async with self._broker.pipeline(transaction=True) as pipeline:
            pipeline.zrem(keys.UNACKED_INDEX, *gone)
            pipeline.hdel(keys.UNACKED, *gone)
            await pipeline.execute()
        log.info("action=messages_forgotten count=%d messages of dead workers, whose chunks are done", len(gone))

    async def _expire_keys(self) -> None:
        """Give keys of ended jobs that have no lifetime the one that the job has."""
        self._cursor, found = await self._redis.scan(self._cursor, keys.job("*"), LOOK_AT_ONCE)
        for key in map(text_of, found):
            job_id = key.split(":")[2]
            arguments: list[int | str] = [keys.KEEP_SECONDS, job_id]
            if await self._expire(keys=[keys.job(job_id), key, keys.ACTIVE], args=arguments):
                log.info("action=key_expires job_id=%s %s was left without a lifetime", job_id, key)


def _chunk_of(kept: bytes | str | None) -> tuple[str, str] | None:
    """The job's and the chunk's id of a message as kombu keeps it; None where it is none of ours."""
    try:
        message, _, _ = json.loads(kept or b"")
        (job_id, chunk_id), _, _ = json.loads(b64decode(message["body"]))
    except (ValueError, TypeError, KeyError):
        return None
    return str(job_id), str(chunk_id)
