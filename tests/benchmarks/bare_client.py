"""Bare aiohttp, the floor of a call: `bare_client.py URL IN_FLIGHT COUNT BODIES.json`.

It opens its connections, prints "ready", and when a line comes sends COUNT of the bodies in turn, IN_FLIGHT at once;
each answer is decoded. It prints the seconds that passed and the seconds of CPU, as JSON.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp
import msgspec


async def main(url: str, in_flight: int, count: int, bodies: list[bytes]) -> None:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def call(number: int) -> None:
            body = bodies[number % len(bodies)]
            async with session.post(f"{url}/chat/completions", data=body) as answer:
                content = msgspec.json.decode(await answer.read())["choices"][0]["message"]["content"]
                msgspec.json.decode(content)

        async def lane() -> None:
            for number in numbers:
                await call(number)

        numbers = iter(range(in_flight))
        await asyncio.gather(*(lane() for _ in range(in_flight)))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        numbers = iter(range(count))
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(lane() for _ in range(in_flight)))
        print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]), flush=True)


if __name__ == "__main__":
    sent = [one.encode() for one in json.loads(Path(sys.argv[4]).read_text())]
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sent))
