"""LLM endpoints: `checks` asks the smallest question in every response format, `probe` for the list of models."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar
from urllib.parse import urlsplit

from config.sections import LlmSettings
from config.settings import Settings
from tasks.errors import BadRequestError, ConfigError, EndpointAwayError, EndpointRefusedError, ThemesError
from tasks.jobs.budget import unpriced
from tasks.redis_url import masked
from tasks.texts import count, duration
from workers.doctor.check import Check, reached
from workers.llm.endpoints.answers import AnswerSchema
from workers.llm.endpoints.client import ChatClient
from workers.llm.endpoints.connections import THIS_MACHINE, Connections
from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.registry import Endpoint, endpoints
from workers.llm.endpoints.reply import AnswerFormat, RawAnswer
from workers.llm.limits.cooldown import read_wait
from workers.llm.limits.limiter import endpoint_digest
from workers.llm.spend import Spend

T = TypeVar("T")

#: Seconds that a question may take here, whatever the settings allow.
QUESTION_SECONDS: Final = 6.0
#: The same for a probe; it asks twice at most.
PROBE_SECONDS: Final = 3.0
#: Tokens that its answer may have: a model that thinks needs most of them for that.
ANSWER_TOKENS: Final = 2_000
MAX_MODELS: Final = 4
_SCHEMA: Final = {
    "type": "object",
    "properties": {"ready": {"type": "boolean"}},
    "required": ["ready"],
    "additionalProperties": False,
}


def checks(settings: Settings) -> Iterator[Check]:
    yield from asyncio.run(_each(_within(settings.llm, QUESTION_SECONDS), _endpoint))


def limits(settings: Settings) -> Iterator[Check]:
    """The endpoints that have asked to be left alone, as all workers know it, also when none of them lives."""
    try:
        known = endpoints(settings.llm)
    except ConfigError:
        return  # `checks` says what is missing
    with reached(settings) as client:
        for endpoint in known:
            for model in _models(settings.llm, endpoint):
                wait = read_wait(client, endpoint_digest(endpoint.base_url, endpoint.name_of(model)))
                if wait is not None:
                    fix = "nothing: one call of the workers tries it then, and all go on when it is answered"
                    yield Check("llm limits", ok=True, found=wait.format(), fix=fix)


def prices(settings: Settings) -> Iterator[Check]:
    """The models whose calls are not counted in dollars. Raises ConfigError: `llm.prices_file` cannot be used."""
    if models := unpriced(settings):
        found = f"no price for {', '.join(models)}: costs are not counted, and a budget is refused"
        yield Check("llm prices", ok=True, found=found, fix="set llm.prices (`themes prices` shows what holds)")


def _within(llm: LlmSettings, seconds: float) -> LlmSettings:
    return replace(
        llm,
        request_timeout_seconds=min(seconds, llm.request_timeout_seconds),
        connect_timeout_seconds=min(seconds, llm.connect_timeout_seconds),
    )


def _connections(llm: LlmSettings, endpoint: Endpoint) -> Connections:
    return Connections(
        llm,
        base_url=endpoint.base_url,
        api_key=endpoint.api_key,
        max_connections=3,
        query=endpoint.query,
        more_headers=endpoint.headers,
    )


async def _each(llm: LlmSettings, ask: Callable[..., Awaitable[list[T]]]) -> list[T]:
    known = endpoints(llm)
    # What a client learns of a server is in the checks; a command shows no log lines between them.
    log = logging.getLogger("themes.llm")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        found = await asyncio.gather(*(ask(llm, endpoint, alone=len(known) == 1) for endpoint in known))
    finally:
        log.setLevel(before)
    return [one for several in found for one in several]


async def _endpoint(llm: LlmSettings, endpoint: Endpoint, *, alone: bool) -> list[Check]:
    name = "llm" if alone else f"llm {endpoint.name}"
    connections = _connections(llm, endpoint)
    checks, spend = [], Spend()
    try:
        for model in _models(llm, endpoint):
            try:
                async for check in _model(name, endpoint, connections, model, spend=spend):
                    checks.append(check)  # noqa: PERF401  # what came before an error counts
            except ThemesError as exc:
                checks.append(Check(name, ok=False, found=str(exc), fix=_fix(exc, endpoint, alone=alone)))
                break
    finally:
        await connections.close()
    if checks and spend.calls:
        said = f"{checks[0].found} ({count(spend.calls, 'call')} of doctor's own, counted in no job)"
        checks[0] = replace(checks[0], found=said)
    return checks


def _models(llm: LlmSettings, endpoint: Endpoint) -> list[str]:
    wanted = [llm.model, *llm.roles.values(), *endpoint.models]
    return list(dict.fromkeys(model for model in wanted if model and endpoint.serves(model)))[:MAX_MODELS]


async def _model(
    name: str, endpoint: Endpoint, connections: Connections, model: str, *, spend: Spend
) -> AsyncIterator[Check]:
    there = endpoint.name_of(model)

    def client(style: AnswerFormat) -> ChatClient:
        return ChatClient(
            endpoint.limits, base_url=endpoint.base_url, model=there, connections=connections, style=style
        )

    began = time.perf_counter()
    answer = await client(AnswerFormat.JSON_SCHEMA).complete(_PROMPT, max_tokens=ANSWER_TOKENS, spend=spend)
    took = time.perf_counter() - began
    place = masked(endpoint.base_url)
    yield Check(name, ok=True, found=f"{place} answered as {answer.model!r} in {duration(took)}, asked for {there!r}")
    others = [style for style in AnswerFormat if style is not answer.style]
    asked = await asyncio.gather(*(_supports(client(style), style, spend) for style in others))
    supported = {answer.style: _is_valid(answer)} | dict(zip(others, asked, strict=True))
    said = ", ".join(f"{style.name.lower()} {'yes' if supported[style] else 'no'}" for style in AnswerFormat)
    if supported[answer.style]:
        weaker = "answers are asked for again more often without json_schema; a server with it is cheaper"
        fix = None if supported[AnswerFormat.JSON_SCHEMA] else weaker
        yield Check(f"{name} formats", ok=True, found=said, fix=fix)
    else:
        fix = f"{there} does not keep to the smallest schema: set THEMES_MODEL to a more able one"
        yield Check(f"{name} formats", ok=any(supported.values()), found=said, fix=fix)
    if answer.tokens.problem:
        found = f"the server counts no tokens that can be true ({answer.tokens.problem}): they are estimated"
        yield Check(f"{name} tokens", ok=True, found=found, fix="let the server send `usage`; costs are a guess else")


async def _supports(client: ChatClient, style: AnswerFormat, spend: Spend) -> bool:
    try:
        answer = await client.complete(_PROMPT, max_tokens=ANSWER_TOKENS, spend=spend)
    except ThemesError:
        return False  # it is what was asked: shown as a no
    return answer.style is style and _is_valid(answer)


def _is_valid(answer: RawAnswer) -> bool:
    try:
        _PROMPT.schema.read(*answer.texts, thoughts=answer.thoughts)
    except (ThemesError, ValueError):
        return False  # it is what was asked: shown as a no
    return True


def _fix(exc: ThemesError, endpoint: Endpoint, *, alone: bool) -> str:
    said = str(exc)
    key, url = ("OPENAI_API_KEY", "OPENAI_BASE_URL") if alone else (f"llm.endpoints.{endpoint.name}'s key", "base_url")
    if " 401 " in said or " 403 " in said:
        return f"export {key}=… with a key of {masked(endpoint.base_url)}" if alone else f"set {key} to one of its own"
    if " 404 " in said:
        return f"set {url} to an address that ends in /v1 (mostly), and THEMES_MODEL to a model that it has"
    if isinstance(exc, EndpointAwayError):
        return f"start that server, or set {url} to one that runs (`themes sandbox-llm` stands in)"
    return f"read what it says; {url} and THEMES_MODEL name the server and the model"


_PROMPT: Final = Prompt(
    stage="doctor",
    version="1",
    system="You answer with JSON.",
    instructions="Say that you are ready.",
    data="",
    identity="",
    schema=AnswerSchema("doctor", _SCHEMA),
    max_tokens=ANSWER_TOKENS,
)


@dataclass(frozen=True, slots=True)
class Probed:
    """What an endpoint says of a model before work.

    `problem` is a line with its mend. `is_refused`: no prompt would be answered. `calls` may have cost something.
    """

    model: str
    problem: str | None = None
    is_refused: bool = False
    calls: int = 0


def probe(settings: Settings) -> list[Probed]:
    """Ask each endpoint for its models, and where that proves nothing, the smallest question. Raises ConfigError."""
    return asyncio.run(_each(_within(settings.llm, PROBE_SECONDS), _probe_endpoint))


async def _probe_endpoint(llm: LlmSettings, endpoint: Endpoint, *, alone: bool) -> list[Probed]:
    connections = _connections(llm, endpoint)
    clients = {
        model: ChatClient(
            endpoint.limits, base_url=endpoint.base_url, model=endpoint.name_of(model), connections=connections,
            style=AnswerFormat.TEXT,
        )
        for model in _models(llm, endpoint)
    }  # fmt: skip
    try:
        proven = await _proven(llm, endpoint, next(iter(clients.values())))
        return list(await asyncio.gather(*(_probe_model(*one, proven=proven) for one in clients.items())))
    except EndpointAwayError as exc:
        return [Probed(model, f"{exc}; {_fix(exc, endpoint, alone=alone)}") for model in clients]
    finally:
        await connections.close()


async def _proven(llm: LlmSettings, endpoint: Endpoint, client: ChatClient) -> frozenset[str]:
    """The models that are listed with this key, and not without one. Raises EndpointAwayError."""
    listed, is_public = await asyncio.gather(client.models(), _is_public(llm, endpoint), return_exceptions=True)
    if isinstance(listed, EndpointAwayError):
        raise listed
    # What is said of the list alone proves nothing: some servers have none, and some keys may not read it.
    return frozenset() if isinstance(listed, BaseException) or is_public is not False else listed


async def _is_public(llm: LlmSettings, endpoint: Endpoint) -> bool:
    """Whether the list of models says nothing of the key. A server of this machine that shows it asks for no key."""
    if not (endpoint.api_key or endpoint.headers) or urlsplit(endpoint.base_url).hostname in THIS_MACHINE:
        return False
    without = replace(endpoint, api_key=None, headers={})
    connections = _connections(llm, without)
    try:
        await ChatClient(llm, base_url=without.base_url, model="", connections=connections).models()
    except ThemesError:
        return False  # it asks for a key, or the other request says what is wrong
    finally:
        await connections.close()
    return True


async def _probe_model(model: str, client: ChatClient, *, proven: frozenset[str]) -> Probed:
    """Ask the smallest question where the list of models does not prove that it would be answered."""
    if client.model in proven:
        return Probed(model)
    spend = Spend()
    try:
        await client.complete(_PROMPT, max_tokens=ANSWER_TOKENS, spend=spend)
    except BadRequestError as exc:
        return Probed(model, str(exc), is_refused=isinstance(exc, EndpointRefusedError), calls=spend.calls)
    except ThemesError:
        pass  # an outage, a limit or a slow model: the workers wait for those
    return Probed(model, calls=spend.calls)
