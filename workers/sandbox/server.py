"""The sandbox LLM over HTTP, on the event loop that enters it.

It answers any JSON Schema with a valid instance, and calls itself `sandbox` in every answer. Besides the API it serves
`/health`, `/stats` (`?prompts=1` for each prompt), `/stats/reset`, `/log` and `/faults`.
"""

import asyncio
import contextlib
import email.utils
import signal
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Self

import msgspec
from aiohttp import web

from config.errors import ConfigError
from workers.sandbox.batch import parse_habits
from workers.sandbox.batches import Batches
from workers.sandbox.chat import FORMATS, MODEL, Chat, Prompt, Refusal, error_body
from workers.sandbox.faults import DEFAULT_LATENCY, Fault, choose_fault, parse_fault, parse_latency
from workers.sandbox.limit import parse_limit
from workers.sandbox.prefixes import Prefixes

LOG_LENGTH: Final = 100_000
#: Seconds that running requests get when the server ends; then they are cut off.
SHUTDOWN_SECONDS: Final = 0.2
MAX_REQUEST_BYTES: Final = 16 * 1024 * 1024
_JSON: Final = "application/json"
_HTML: Final = "<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>Bad Gateway</body></html>"
#: Fault kind -> status, type, code and message of its error body.
_ERRORS: Final = {
    "429": (429, "rate_limit_error", "rate_limit_exceeded", "Rate limit reached for requests."),
    "500": (500, "server_error", "internal_error", "The server had an error while processing your request."),
    "503": (503, "server_error", "overloaded", "The engine is currently overloaded, please try again later."),
    "401": (401, "authentication_error", "invalid_api_key", "Incorrect API key provided."),
    "400": (400, "invalid_request_error", "invalid_request", "The request was refused."),
    "404": (404, "invalid_request_error", "model_not_found", "The model does not exist."),
    "no_capacity": (429, "rate_limit_error", "resource_unavailable", "No capacity for this service tier now."),
    "error200": (200, "server_error", "internal_error", "The upstream model failed."),
}


#: Refused at the door: these faults take no time.
_AT_ONCE: Final = ("400", "401", "404", "429", "no_capacity")


class _Record(msgspec.Struct):
    stage: str = "unknown"
    destination: str = ""
    started: float = 0.0
    ended: float = 0.0
    status: str = "499"
    digest: str = ""


class SandboxServer:
    """The server; entering it binds the port, leaving it closes every connection.

    `port` 0 takes a free one. `seed` and the prompt decide every answer, latency and fault. Response formats
    that are not in `formats` get `format_refusal` (400 or 500). Raises ConfigError.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        latency: str = DEFAULT_LATENCY,
        seed: int = 0,
        faults: Sequence[str] = (),
        style: str = "knowledge",
        formats: Sequence[str] = FORMATS,
        format_refusal: int = 400,
        api_key: str | None = None,
        rate_limit: str | None = None,
        batches: str = "",
        prefix_cache: int = 0,
    ) -> None:
        self.host = host
        self.port = port
        self._latency = parse_latency(latency)
        self._seed = seed
        self._chat = Chat(seed=seed, style=style, formats=formats, format_refusal=format_refusal)
        self._api_key = api_key
        self._limit = parse_limit(rate_limit) if rate_limit else None
        self._runner: web.AppRunner | None = None
        self._prefixes = Prefixes(prefix_cache)
        self._batches = Batches(parse_habits(batches), self._answer_line, self._check_key)
        self.set_faults(faults)
        self.reset_stats()

    def __repr__(self) -> str:
        return f"<SandboxServer {self.base_url} requests={self._requests} in_flight={self._in_flight}>"

    async def __aenter__(self) -> Self:
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            handler_cancellation=True,  # a caller that hangs up frees its hanging request
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self.host, self.port, backlog=1024).start()
        except OSError as exc:
            await runner.cleanup()
            reason = exc.strerror or str(exc)
            raise ConfigError(
                f"--host {self.host} --port {self.port}: {reason}; choose another port, or 0 for a free one"
            ) from exc
        self._runner = runner
        self.port = runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        await self._batches.close()

    @property
    def root_url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.root_url}/v1"

    def set_faults(self, faults: Sequence[str]) -> None:
        """Replace all fault rules (`workers.sandbox.faults.GRAMMAR`). Raises ConfigError; then the old rules stay."""
        self._faults = [parse_fault(text) for text in faults]

    def reset_stats(self) -> None:
        """Start counting anew, and forget which prompts were asked; requests under way stay in flight."""
        self._requests = self._refused = self._prompt_tokens = self._completion_tokens = 0
        self._in_flight: int = getattr(self, "_in_flight", 0)
        self._max_in_flight = self._in_flight
        self._by_status: Counter[str] = Counter()
        self._by_stage: Counter[str] = Counter()
        #: Times each prompt was asked; about 100 bytes each until the next reset.
        self._asked: Counter[str] = Counter()
        #: Requests and tokens that were answered and so are paid, by tier.
        self._billed: dict[str, Counter[str]] = {}
        if self._limit is not None:
            self._limit.refused = 0
        self._log: deque[_Record] = deque(maxlen=LOG_LENGTH)

    def stats(self, *, prompts: bool = False) -> dict[str, Any]:
        """Counts since the start or the last reset; with `prompts`, the times each prompt was asked, by its digest.

        `refused` are answers with a 4xx status. Keys of `by_status` are statuses, `reset` (connection cut) and `499`
        (the caller hung up).
        """
        counts: dict[str, Any] = {
            "requests": self._requests,
            "in_flight": self._in_flight,
            "max_in_flight": self._max_in_flight,
            "by_status": dict(self._by_status),
            "distinct_prompts": len(self._asked),
            "max_per_prompt": max(self._asked.values(), default=0),
            "refused": self._refused,
            "rate_limited": self._limit.refused if self._limit else 0,
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "by_stage": dict(self._by_stage),
            "billed": {tier: dict(counts) for tier, counts in self._billed.items()},
            "batches": self._batches.stats(),
        }
        return counts | ({"prompts": dict(self._asked)} if prompts else {})

    def log(self) -> list[dict[str, Any]]:
        return [msgspec.to_builtins(record) for record in self._log]

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_REQUEST_BYTES, middlewares=[_refusals])
        app.router.add_post("/v1/chat/completions", self._handle_chat)
        app.router.add_get("/v1/models", _answering(self._models))
        app.router.add_get("/health", _answering(lambda _: {"status": "ok"}))
        app.router.add_get("/stats", _answering(lambda asked: self.stats(prompts=asked.query.get("prompts") == "1")))
        app.router.add_post("/stats/reset", self._reset_stats)
        app.router.add_get("/log", _answering(lambda _: self.log()))
        app.router.add_get("/faults", _answering(lambda _: [str(fault) for fault in self._faults]))
        app.router.add_post("/faults", self._put_faults)
        self._batches.route(app)
        app.router.add_route("*", "/{path:.*}", _not_found)
        return app

    def _models(self, request: web.Request) -> dict[str, Any]:
        self._check_key(request)
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "themes"}]}

    def _check_key(self, request: web.Request) -> None:
        if self._api_key is not None and request.headers.get("Authorization") != f"Bearer {self._api_key}":
            raise Refusal(401, _ERRORS["401"][3], code="invalid_api_key", kind="authentication_error")

    async def _reset_stats(self, _: web.Request) -> web.Response:
        self.reset_stats()
        return _respond({"status": "ok"})

    async def _put_faults(self, request: web.Request) -> web.Response:
        try:
            self.set_faults(msgspec.json.decode(await request.read(), type=list[str]))
        except (ConfigError, msgspec.DecodeError) as exc:
            return _respond(error_body(str(exc), kind="invalid_request_error", code="invalid_fault"), status=400)
        return _respond([str(fault) for fault in self._faults])

    async def _handle_chat(self, request: web.Request) -> web.StreamResponse:
        record = _Record(started=time.monotonic())
        self._requests += 1
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        try:
            response = self._over_limit() or await self._answer(request, record)
            if record.status == "499":
                record.status = str(response.status)
            return response
        except Refusal as refusal:
            record.status = str(refusal.status)
            return _respond(refusal.body, status=refusal.status)
        finally:
            record.ended = time.monotonic()
            self._in_flight -= 1
            self._by_status[record.status] += 1
            self._by_stage[record.stage] += 1
            self._refused += record.status in _AT_ONCE
            self._log.append(record)

    def _over_limit(self) -> web.Response | None:
        """A refusal where the limit is exceeded, before anything is read, as gateways do."""
        if self._limit is None or not (wait := self._limit.wait_seconds(time.monotonic())):
            return None
        return _respond(_error_of("429"), status=429, headers=self._limit.headers(wait))

    async def _answer(self, request: web.Request, record: _Record) -> web.StreamResponse:
        self._check_key(request)
        prompt = self._chat.understand(await request.read())
        record.stage, record.destination = prompt.question.stage, prompt.question.input.destination.name
        record.digest = prompt.digest
        occurrence = self._asked[prompt.digest]
        self._asked[prompt.digest] += 1
        fault = choose_fault(
            self._faults, text=prompt.text, digest=prompt.digest, seed=self._seed, occurrence=occurrence
        )
        if fault is not None and fault.kind == "no_capacity" and prompt.tier != "flex":
            fault = None
        if fault is not None and fault.kind in _AT_ONCE:
            return _faulty_status(fault)
        if fault is not None and fault.kind == "hang":
            await asyncio.Event().wait()
        cached = self._prefixes.cached_tokens(prompt.text)
        delay = self._latency.seconds(f"{self._seed}/{prompt.seed}/{prompt.digest}")
        if delay > 0:
            await asyncio.sleep(delay)
        self._prefixes.keep(prompt.text)
        if fault is None:
            answer = self._completion(prompt)
            if cached:
                answer["usage"]["prompt_tokens_details"] = {"cached_tokens": cached}
            return _respond(answer)
        if fault.kind in _ERRORS:
            return _faulty_status(fault)
        if fault.kind == "html":
            return web.Response(status=502, text=_HTML, content_type="text/html")
        body = msgspec.json.encode(self._completion(prompt, fault.kind))
        if fault.kind in ("reset", "drip", "endless"):
            return await _misbehave(request, fault, body, record)
        return web.Response(body=body, content_type=_JSON)

    def _answer_line(self, body: bytes) -> dict[str, Any]:
        """Answer a line of a batch. Raises Refusal."""
        prompt = self._chat.understand(body)
        self._asked[prompt.digest] += 1
        return self._completion(prompt, tier="batch")

    def _completion(self, prompt: Prompt, fault: str = "", *, tier: str = "") -> dict[str, Any]:
        body = self._chat.completion(prompt, fault)
        usage = body["usage"]
        self._prompt_tokens += usage["prompt_tokens"]
        self._completion_tokens += usage["completion_tokens"]
        paid = self._billed.setdefault(tier or body.get("service_tier", "default"), Counter())
        paid.update(requests=1, prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"])
        return body


async def serve(server: SandboxServer, *, started: Callable[[str], None]) -> None:
    """Run the server until SIGTERM or SIGINT; `started` is called once with the base URL."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with server:
        started(server.base_url)
        await ended.wait()


def _error_of(fault_kind: str) -> Any:
    _, kind, code, message = _ERRORS[fault_kind]
    return error_body(message, kind=kind, code=code)


def _faulty_status(fault: Fault) -> web.Response:
    response = _respond(_error_of(fault.kind), status=_ERRORS[fault.kind][0])
    if fault.retry_after == "date":
        # A date has whole seconds: two ahead is never already past.
        response.headers["Retry-After"] = email.utils.formatdate(time.time() + 2, usegmt=True)
    elif fault.retry_after is not None:
        response.headers["Retry-After"] = f"{fault.retry_after:g}"
    return response


async def _misbehave(request: web.Request, fault: Fault, body: bytes, record: _Record) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": _JSON})
    if fault.kind != "endless":
        response.content_length = len(body)
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):  # the caller has had enough
        if fault.kind == "reset":
            record.status = "reset"
            await response.write(body[: len(body) // 2])
            if request.transport is not None:
                request.transport.abort()
        elif fault.kind == "drip":
            for at in range(len(body)):
                await response.write(body[at : at + 1])
                await asyncio.sleep(fault.interval_seconds)
        else:
            await response.write(b'{"choices":[{"index":0,"message":{"role":"assistant","content":"')
            while True:
                await response.write(b"endless " * 4096)
                await asyncio.sleep(0)
    return response


def _respond(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type=_JSON, headers=headers)


def _answering(answer: Callable[[web.Request], Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        return _respond(answer(request))

    return handle


@web.middleware
async def _refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as refusal:
        return _respond(refusal.body, status=refusal.status)


async def _not_found(request: web.Request) -> web.Response:
    message = f"Unknown request URL: {request.method} {request.path}."
    return _respond(error_body(message, kind="invalid_request_error", code="unknown_url"), status=404)
