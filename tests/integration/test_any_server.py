"""A job against a server that may send anything: it ends, each destination has one row, and the books are true."""

import asyncio
import itertools
import json
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config.settings import Settings, load
from tasks.messages import Destination, JobOptions
from workers.local.job import LocalJob
from workers.local.state_file import StateFile
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import JobRow
from workers.sandbox.server import SandboxServer

#: Seconds in which a job must end on a machine that is busy.
DEADLINE_SECONDS: Final = 120
TOWNS = [Destination.of(name) for name in ("Kyoto", "Oslo")]


@dataclass(frozen=True)
class Reply:
    """What the server sends: this status, these headers and this body, or the sandbox's answer changed by `usage`."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    usage: Any = None


GOOD = Reply()


@dataclass
class AnyServer:
    """Sends the replies of `script` in turn, for ever."""

    script: Sequence[Reply]
    url: str = ""
    asked: int = 0
    turn: "itertools.cycle[Reply]" = field(init=False)

    def __post_init__(self) -> None:
        self.turn = itertools.cycle(self.script)

    def next(self) -> Reply:
        """The reply to one call."""
        self.asked += 1
        return next(self.turn)


@asynccontextmanager
async def _serving(script: Sequence[Reply]) -> AsyncIterator[AnyServer]:
    """A server of bare bytes: what it sends need not be HTTP as a library would write it."""
    server = AnyServer(script)
    async with SandboxServer(latency="0") as sandbox, aiohttp.ClientSession() as session:

        async def answered(request: bytes, reply: Reply) -> bytes:
            async with session.post(f"{sandbox.base_url}/chat/completions", data=request) as given_answer:
                body = await given_answer.json()
            return json.dumps(body if reply.usage is None else body | {"usage": reply.usage}).encode()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while head := await reader.readuntil(b"\r\n\r\n"):
                    sizes = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                    request = await reader.readexactly(int(sizes[0].split(b":")[1]) if sizes else 0)
                    reply = server.next() if head.startswith(b"POST") else Reply(body=b"{}")
                    body = await answered(request, reply) if reply.body is None else reply.body
                    lines = [f"HTTP/1.1 {reply.status} Odd", f"Content-Length: {len(body)}"]
                    lines += [f"{name}: {value}" for name, value in reply.headers]
                    writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
                    await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError):
                pass  # the client has closed the connection
            finally:
                writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with listener:
            server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
            yield server


def _settings(url: str, state: Path) -> Settings:
    env = {
        "OPENAI_BASE_URL": url,
        "OPENAI_API_KEY": "secret-key",
        "THEMES_MODEL": "sandbox",
        "THEMES_STATE_DIR": str(state),
        "THEMES_LLM__PRICES": "{sandbox: {input_usd: 1, output_usd: 2}}",
        "THEMES_LLM__PROBE_SECONDS": "0.05",
        "THEMES_LLM__WAIT_FOR_ENDPOINT_SECONDS": "0.3",
        "THEMES_LLM__REQUEST_TIMEOUT_SECONDS": "30",
        "THEMES_LLM__LEARN_RATE_LIMIT": "false",
        "THEMES_WORK__DESTINATION_ATTEMPTS": "1",
        "THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES": "1",
        "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "0.01",
        "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_MAX_DELAY": "0.02",
    }
    return load(env=env)


async def _input() -> AsyncIterator[list[Destination]]:
    yield TOWNS


def _is_sound(row: JobRow, server: AnyServer) -> None:
    usage = row.usage
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.cache_hits, usage.estimated_calls)
    assert all(0 <= count < 10**10 for count in counts), usage
    assert 0 <= (usage.cost_usd or 0.0) < 10**5
    assert usage.llm_calls == server.asked


async def _job(script: Sequence[Reply], budget_usd: float | None) -> None:
    """Run the job, and where it pauses let it go on with a server that answers well."""
    options = JobOptions(budget_usd=budget_usd)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        async with _serving(script) as server, AsyncDatabaseManager(
            f"sqlite+aiosqlite:///{state / 'themes.db'}", pool_size=2, is_acknowledged=False
        ) as store:  # fmt: skip
            config = _settings(server.url, state)
            with StateFile(state) as file:

                async def run(attempt: int, limit_usd: float | None) -> LocalJob:
                    job = LocalJob(
                        config, store, file, job_id="j", options=options, attempt=attempt, written=lambda _: None,
                        limit_usd=limit_usd,
                    )  # fmt: skip
                    await job.run("any", time.time(), _input() if attempt == 1 else None, [] if attempt > 1 else None)
                    assert job.book is None or job.book.spent_nano >= 0
                    return job

                job = await run(1, None)
                row = await store.job("j")
                assert row is not None
                _is_sound(row, server)
                assert bool(job.paused) == (row.state != "done"), (row, job.paused)
                if job.paused:
                    server.turn = itertools.cycle([GOOD])
                    await run(await store.last_attempt("j") + 1, 1_000_000.0 if budget_usd else None)
            row = await store.job("j")
            assert row is not None
            _is_sound(row, server)
            assert (row.state, row.done + row.failed) == ("done", len(TOWNS))
            rows = [one async for one in store.destinations("j")]
            assert sorted(one.destination.id for one in rows) == sorted(town.id for town in TOWNS)
            assert {one.state for one in rows} <= {"done", "failed"}


NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(["12", "-1", "1e999", "NaN", True, None])
WORDS = st.text(max_size=20) | st.sampled_from(
    ["stop", "length", "error", "\u2028", "\ud800", "\x00", "{", '{"themes": [', "<think>", "</think>", "[]", "quota"]
)
JSON = st.recursive(
    NUMBERS | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "code", "type", "content", "text", "role", "function", "themes"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def _dumped(value: Any) -> bytes:
    """JSON as careless servers write it: NaN and lone surrogates included."""
    return json.dumps(value).encode()


USAGES = st.fixed_dictionaries(
    {}, optional={"prompt_tokens": NUMBERS, "completion_tokens": NUMBERS, "total_tokens": NUMBERS,
                  "completion_tokens_details": JSON},
)  # fmt: skip
ENVELOPES = st.fixed_dictionaries(
    {
        "choices": JSON
        | st.lists(
            st.fixed_dictionaries({}, optional={"message": JSON, "delta": JSON, "finish_reason": JSON, "error": JSON}),
            max_size=2,
        )
        | st.builds(lambda text, end: [{"message": {"content": text}, "finish_reason": end}], WORDS, WORDS)
    },
    optional={"usage": USAGES | JSON, "model": JSON, "error": JSON},
).map(_dumped)
BODIES = ENVELOPES | JSON.map(_dumped) | st.binary(max_size=60)
VALUES = st.sampled_from(
    ["0", "-1", "1e999", "NaN", "99999999999999999999", "Thu, 01 Jan 1970 00:00:00 GMT", "1m", "\xff", "", "0.01"]
) | NUMBERS.map(str)
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["Retry-After", "retry-after-ms", "x-ratelimit-reset-requests", "x-ratelimit-remaining-requests",
             "x-ratelimit-limit-requests", "ratelimit-reset", "ratelimit-remaining", "Content-Type"]
        ),
        VALUES,
    ),
    max_size=3,
).map(tuple)  # fmt: skip
STATUSES = st.sampled_from(
    [200, 200, 200, 201, 204, 301, 400, 401, 402, 403, 404, 413, 422, 429, 498, 500, 502, 503, 599]
)
REPLIES = (
    st.builds(Reply, st.just(200), HEADERS, st.none(), USAGES | JSON)
    | st.builds(Reply, STATUSES, HEADERS, BODIES)
    | st.just(GOOD)
)


@given(st.lists(REPLIES, min_size=1, max_size=5), st.none() | st.sampled_from([0.005, 0.05]))
@example([Reply(429, (("Retry-After", "86400"),), b"")], None)
@example([Reply(usage={"prompt_tokens": -(10**6), "completion_tokens": 2**63 - 1})], 0.01)
@settings(max_examples=10)
def test_a_job_ends_with_true_books_whatever_the_server_sends(script: list[Reply], budget_usd: float | None) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await _job(script, budget_usd)

    asyncio.run(bounded())
