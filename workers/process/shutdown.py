"""Ending background tasks for sure."""

import asyncio
from typing import Any, Final

#: Seconds that a cancelled task may take to end before it is cancelled again.
CANCEL_AGAIN_SECONDS: Final = 0.5


async def end_tasks(*tasks: asyncio.Task[Any], again_seconds: float = CANCEL_AGAIN_SECONDS) -> None:
    """Cancel tasks until all have ended; their errors are dropped. Each cancellation gives `again_seconds` to end.

    Once is not enough: redis-py can lose a cancellation that comes while it opens a connection.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=again_seconds)
    await asyncio.gather(*tasks, return_exceptions=True)
