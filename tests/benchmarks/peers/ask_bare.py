"""Bare aiohttp, the floor: one session with as many connections as calls in flight. Decodes and does not validate."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from driver import Call, Terms


@asynccontextmanager
async def opened(terms: Terms) -> AsyncIterator[Callable[[Call], Awaitable[object]]]:
    headers = {"Content-Type": "application/json", "Authorization": "Bearer none"}
    connector = aiohttp.TCPConnector(limit=terms.in_flight)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def ask(call: Call) -> object:
            async with session.post(
                f"{terms.server}/chat/completions", data=msgspec.json.encode(call.body())
            ) as answer:
                content = msgspec.json.decode(await answer.read())["choices"][0]["message"]["content"]
                return msgspec.json.decode(content)

        yield ask
