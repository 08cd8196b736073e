"""A provider of batches as the product sees it: the sandbox, or a server that answers as a test wants."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from aiohttp import ClientSession, web

from config.sections import LlmSettings
from workers.llm.batches.batch import ProviderBatch
from workers.llm.batches.dialects import BatchDialect
from workers.llm.batches.lines import LineEnd
from workers.llm.batches.provider import Provider
from workers.llm.endpoints.client import ChatClient
from workers.llm.endpoints.connections import Connections
from workers.sandbox.server import SandboxServer

KEY: Final = "sk-a-key-of-the-test"


@asynccontextmanager
async def provider_at(
    base_url: str, *, key: str = KEY, query: str = "", dialect: BatchDialect | None = None, **settings: Any
) -> AsyncIterator[Provider]:
    """The client of a server; with a `dialect` it speaks that, whatever the server's name."""
    llm = LlmSettings(**settings)
    connections = Connections(llm, base_url=base_url, api_key=key, max_connections=4, query=query)
    client = ChatClient(llm, base_url=base_url, model="sandbox", connections=connections)
    try:
        yield Provider(client, connections, llm, dialect)
    finally:
        await connections.close()


@asynccontextmanager
async def sandbox_provider(habits: str = "delay=0", **settings: Any) -> AsyncIterator[tuple[Provider, SandboxServer]]:
    async with (
        SandboxServer(batches=habits, latency="0", api_key=KEY) as server,
        provider_at(server.base_url, **settings) as provider,
    ):
        yield provider, server


@asynccontextmanager
async def served(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """The base URL of a server that gives every request to `answer`."""
    app = web.Application(client_max_size=0)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def answering(
    *answers: web.Response | Callable[[], web.Response], asked: list[str] | None = None, **settings: Any
) -> AsyncIterator[Provider]:
    """A provider that gives these answers in turn, the last one for ever; `asked` gets what was asked."""
    left = list(answers)

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        if asked is not None:
            asked.append(f"{request.method} {request.path_qs}")
        one = left.pop(0) if len(left) > 1 else left[0]
        given = one() if callable(one) else one
        return web.Response(status=given.status, body=given.body, headers=given.headers)

    async with served(answer) as url, provider_at(url, **settings) as provider:
        yield provider


async def ended(provider: Provider, batch_id: str) -> ProviderBatch:
    async with asyncio.timeout(60):
        while (batch := await provider.status(batch_id)).state == "running":
            await asyncio.sleep(0.02)
    return batch


async def all_lines(provider: Provider, files: Sequence[str], *, skip: int = 0) -> list[LineEnd]:
    return [end for file in files async for ends in provider.lines(file, skip=skip) for end in ends]


#: What is made of a server's reply: `(method and path, status, body)` to a status and a body.
Alter = Callable[[str, int, bytes], tuple[int, bytes]]


def as_it_is(_: str, status: int, body: bytes) -> tuple[int, bytes]:
    return status, body


@asynccontextmanager
async def altered(base_url: str, alter: Alter) -> AsyncIterator[str]:
    """The base URL of a server that passes on what it is asked, and alters the replies."""
    async with ClientSession(base_url.removesuffix("v1")) as session:

        async def answer(request: web.Request) -> web.StreamResponse:
            headers = {name: value for name, value in request.headers.items() if name not in {"Host", "Content-Length"}}
            asked = session.request(request.method, request.path_qs, data=await request.read(), headers=headers)
            async with asked as reply:
                status, body = alter(f"{request.method} {request.path}", reply.status, await reply.read())
                return web.Response(status=status, body=body, content_type=reply.content_type)

        async with served(answer) as url:
            yield url
