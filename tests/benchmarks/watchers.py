"""Holds many streams of events open, as so many browsers would. `python -m tests.benchmarks.watchers URL COUNT`.

Prints "open" when all are, and at the end of its input how many events they got.
"""

import asyncio
import sys

import aiohttp


async def main(url: str, count: int) -> None:
    events = 0

    async def watch(session: aiohttp.ClientSession, opened: asyncio.Semaphore) -> None:
        nonlocal events
        async with session.get(url) as response:
            response.raise_for_status()
            opened.release()
            async for piece in response.content.iter_any():
                events += piece.count(b"\nevent: ")

    opened = asyncio.Semaphore(0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        tasks = [asyncio.create_task(watch(session, opened)) for _ in range(count)]
        opening = asyncio.gather(*(opened.acquire() for _ in range(count)))
        await asyncio.wait([opening, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
        await opening
        print("open", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        print(events, flush=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
