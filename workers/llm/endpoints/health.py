"""Looking after the LLM connections of a worker between jobs, when no call shows whether its endpoints answer.

An idle pool reopens the connections that are missing to its minimum, and logs when endpoints do not answer.
"""

import asyncio
import logging

from workers.llm.endpoints.pool import LLMConnectionPool

log = logging.getLogger("themes.health")


async def look_after(pool: LLMConnectionPool, *, minimum: int, seconds: float) -> None:
    """Open `minimum` connections, and look again every `seconds`; 0: only at the start."""
    await pool.warm(minimum)
    while seconds:
        await asyncio.sleep(seconds)
        if pool.in_use == 0:
            await look(pool, minimum=minimum)


async def look(pool: LLMConnectionPool, *, minimum: int) -> int:
    """One look; returns how many connections were tried with success."""
    tried = max(minimum, len({route.client.base_url for route in pool.routes}))
    answered = await pool.warm(tried)
    if answered < tried:
        log.warning(
            "action=health_check %d of %d connections to the LLM answer; work waits for the others when it comes",
            answered, tried,
        )  # fmt: skip
    return answered
