"""An OpenAI-compatible server with habits of its own: it answers as a test says, and else as the sandbox does."""

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientSession, web

from workers.sandbox.server import SandboxServer

#: What a server does with the number of a request (from 1) and its body: None leaves it to the sandbox.
Habit = Callable[[int, dict[str, Any]], web.StreamResponse | None]
#: What it counts in place of what the sandbox does.
Counts = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass
class Server:
    """Where it listens, and what it was asked."""

    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    #: Of each request: its path with the query, and its headers.
    paths: list[str] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)


@asynccontextmanager
async def server_that(
    habit: Habit, *, tls: ssl.SSLContext | None = None, counts: Counts = lambda usage: usage
) -> AsyncIterator[Server]:
    """A server on this machine for as long as the body runs."""
    server = Server()
    async with SandboxServer(latency="0") as sandbox, ClientSession() as session:

        async def chat(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            server.asked.append(body)
            server.paths.append(request.path_qs)
            server.headers.append(request.headers)
            answer = habit(len(server.asked), body)
            if answer is not None:
                return answer
            async with session.post(f"{sandbox.base_url}/chat/completions", json=body) as given:
                whole = await given.json()
                told = {"usage": counts(whole["usage"])} if "usage" in whole else {}
                return web.json_response(whole | told, status=given.status)

        async def models(_: web.Request) -> web.StreamResponse:
            return web.json_response({"data": []})

        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        app.router.add_get("/v1/models", models)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        scheme = "https" if tls else "http"
        server.url = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield server
        finally:
            await runner.cleanup()


@contextmanager
def in_a_thread(habit: Habit, *, counts: Counts = lambda usage: usage) -> Iterator[Server]:
    """The same for tests that start processes and wait for them."""
    started: list[Server] = []
    is_up, loop = threading.Event(), asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve() -> None:
        async with server_that(habit, counts=counts) as server:
            started.append(server)
            is_up.set()
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert is_up.wait(180)
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(180)
        loop.close()


def says(content: Any, ended: Any = "stop", **more: Any) -> web.Response:
    """An answer with this content."""
    message = content if isinstance(content, dict) else {"content": content}
    return web.json_response({"choices": [{"message": message, "finish_reason": ended}], **more})


def refuses(status: int, message: str, **more: Any) -> web.Response:
    """An error."""
    return web.json_response({"error": {"message": message, **more}}, status=status)
