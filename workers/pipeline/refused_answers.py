"""Keeps what a model said that could not be used (`dashboard.show_answers`), beside the work: it delays no stage."""

import asyncio
import logging
import time
from typing import Final

from redis import RedisError
from redis.asyncio import Redis

from tasks.errors import InvalidAnswerError
from tasks.jobs.refused_answers import RefusedAnswer, add
from tasks.messages import Destination
from workers.llm.endpoints.prompt import Prompt

log = logging.getLogger("themes.pipeline")

#: Answers on their way to Redis; more are left out.
MAX_UNDER_WAY: Final = 20


class RefusedAnswers:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._under_way: set[asyncio.Task[None]] = set()

    def keep(self, job_id: str, destination: Destination, prompt: Prompt, error: InvalidAnswerError) -> None:
        """Keep an answer; never blocks. One that another process has seen is kept there."""
        if not error.answer or len(self._under_way) >= MAX_UNDER_WAY:
            return
        texts = (prompt.system, prompt.data, prompt.instructions)
        refused = RefusedAnswer(
            destination.id, destination.label, prompt.stage, time.time(), str(error), "\n\n".join(texts), error.answer
        )
        task = asyncio.create_task(self._write(job_id, refused), name="refused answer")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _write(self, job_id: str, refused: RefusedAnswer) -> None:
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                add(pipeline, job_id, refused)
                await pipeline.execute()
        except (RedisError, OSError) as bad:
            log.debug("action=answer_dropped job_id=%s Redis does not take it: %s", job_id, bad)

    async def close(self) -> None:
        """Wait for what is on its way."""
        await asyncio.gather(*self._under_way)
