"""A destination by aiohttp: its calls one after the other, on a session that its process keeps."""

import time

import aiohttp

from tests.benchmarks.jobs.destination import HEADERS, content_of, keep, requests_about, url


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(headers=HEADERS, timeout=aiohttp.ClientTimeout(total=60), raise_for_status=True)


async def work(client: aiohttp.ClientSession, name: str) -> None:
    began, contents = time.time(), []
    for body in requests_about(name):
        async with client.post(url(), data=body) as answer:
            contents.append(content_of(await answer.json()))
    keep(name, contents, began)
