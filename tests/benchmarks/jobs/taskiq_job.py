"""taskiq: a task a destination, taskiq-redis with its broker that acknowledges and its result backend, aiohttp.

A worker reads one message at a time: by default the first one would read a hundred, and leave the other nothing.
`taskiq worker tests.benchmarks.jobs.taskiq_job:broker`; `python -m tests.benchmarks.jobs.taskiq_job NAMES` enqueues.
"""

import asyncio
import os
import sys
from typing import Annotated

from taskiq import Context, TaskiqDepends, TaskiqEvents, TaskiqState
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from tests.benchmarks.jobs.destination import names_of
from tests.benchmarks.jobs.with_aiohttp import session, work

broker = RedisStreamBroker(url=os.environ["JOB_REDIS"], xread_count=1).with_result_backend(
    RedisAsyncResultBackend(redis_url=os.environ["JOB_REDIS"])
)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def open_session(state: TaskiqState) -> None:
    state.session = session()


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN)
async def close_session(state: TaskiqState) -> None:
    await state.session.close()


@broker.task(task_name="destination")
async def destination(name: str, context: Annotated[Context, TaskiqDepends()]) -> str:
    await work(context.state.session, name)
    return name


async def enqueue(path: str) -> None:
    await broker.startup()
    for one in names_of(path):
        await destination.kiq(one)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(enqueue(sys.argv[1]))
