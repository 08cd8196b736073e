"""`themes demo` without Redis: one process, and the sandbox LLM in a thread of it."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Final

from config.settings import Settings
from scripts.demo import say_what_came_of_it, say_where_the_time_went, show, which_llm
from scripts.lib.local_run import RunRequest, run
from scripts.lib.terminal import say
from scripts.main import settings_from
from workers.sandbox.faults import DEFAULT_LATENCY
from workers.sandbox.server import SandboxServer

#: Seconds that the sandbox may take to start, and to end.
SANDBOX_SECONDS: Final = 10.0


def demo(settings: Settings, file: str, latency: str | None) -> int:
    # A base URL is named on purpose; a key alone may just lie in the environment, and would cost money.
    is_sandbox = settings.llm.base_url is None
    say(which_llm(settings, sandbox=is_sandbox))
    say("redis.enabled is false: the job runs in this process, without workers, dashboard and Redis")
    with contextlib.ExitStack() as stack:
        if is_sandbox:
            url = stack.enter_context(sandbox_in_thread(latency or DEFAULT_LATENCY))
            settings = settings_from(llm__base_url=url, llm__api_key="sandbox", llm__model="sandbox")
        result = run(settings, RunRequest(file=file, name="demo"))
    if result.job is not None:
        asyncio.run(show(settings, result.job.job_id))
        say_what_came_of_it(result.job, settings)
        say_where_the_time_went(result.measured)
    return result.code


@contextlib.contextmanager
def sandbox_in_thread(latency: str) -> Iterator[str]:
    started: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        try:
            async with SandboxServer(latency=latency) as server:
                over = asyncio.Event()
                started.set_result((server.base_url, asyncio.get_running_loop(), over))
                await over.wait()
        except BaseException as exc:
            if not started.done():
                started.set_exception(exc)
            raise

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="sandbox", daemon=True)
    thread.start()
    url, loop, over = started.result(SANDBOX_SECONDS)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(SANDBOX_SECONDS)
