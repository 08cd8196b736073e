"""One script without a queue: a semaphore of destinations, aiohttp. Started again, it leaves out what has a row.

`python -m tests.benchmarks.jobs.asyncio_job NAMES`
"""

import asyncio
import os
import sys

from tests.benchmarks.jobs.destination import kept, names_of
from tests.benchmarks.jobs.with_aiohttp import session, work


async def main(names: list[str]) -> None:
    semaphore = asyncio.Semaphore(int(os.environ["JOB_IN_FLIGHT"]))
    done = kept()
    async with session() as client:

        async def one(name: str) -> None:
            async with semaphore:
                await work(client, name)

        await asyncio.gather(*(one(name) for name in names if name not in done))


if __name__ == "__main__":
    asyncio.run(main(names_of(sys.argv[1])))
