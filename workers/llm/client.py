"""One model at one OpenAI-compatible endpoint.

Why not an SDK: CPU per call at 64 in flight is 0.11 ms here and 2.1 ms in the official one, and retries inside an SDK
cannot be coordinated (docs/design.md). The client makes one HTTP request and says what came of it; retrying,
validating and caching are the generator's.

Servers differ, and the client learns: a refused `response_format` is replaced by the next weaker one
(json_schema -> json_object -> the schema in the prompt), a refused `max_tokens` by `max_completion_tokens`, and what
worked is remembered for the endpoint.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import msgspec

from config.settings import LlmSettings
from tasks.connection import masked
from tasks.errors import (
    BadRequestError,
    EndpointAwayError,
    EndpointDownError,
    EndpointRefusedError,
    RateLimitedError,
    RefusedError,
    ThemesError,
)
from workers.llm.bodies import ERROR_CHARACTERS, bounded_body, content_of, error_text
from workers.llm.connections import Connections
from workers.llm.cooldown import exhausted_seconds, retry_after_seconds
from workers.llm.prompt import Prompt
from workers.llm.sending import CallCounter, CountedBody
from workers.observe.counters import field as counter
from workers.observe.profiler import SILENT, PerformanceProfiler
from workers.observe.recorder import Expected, Recording

if TYPE_CHECKING:
    from workers.llm.budget import JobBudget

#: Characters a token has, where the server does not count them (English prose: about 4).
CHARACTERS_PER_TOKEN: Final = 4

#: Begins the line of a prompt that carries its schema.
SCHEMA_LINE: Final = "JSON Schema: "
#: Invalid answers after which a format that never gave a valid one is given up.
UNUSABLE_ANSWERS: Final = 2
#: 500s in a row after which a format that has never worked is given up.
UNEXPLAINED_ERRORS: Final = 3

_HINTS: Final = {
    401: "the key is refused: check OPENAI_API_KEY",
    402: "the account's quota is used up",
    403: "the key is refused: check OPENAI_API_KEY",
    404: "check OPENAI_BASE_URL, which mostly ends in /v1, and THEMES_MODEL",
    429: "the account's quota is used up",
}
#: How a request is counted that nobody got.
UNREACHABLE: Final = "unreachable"
_FORMAT_WORDS: Final = ("response_format", "json_schema", "json_object", "schema", "grammar")
#: Statuses of a gateway that has nobody behind it, and of a server that takes nobody in.
_AWAY: Final = frozenset({502, 503, 504})
_QUOTA_CODES: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})


class AnswerFormat(IntEnum):
    """How a server is asked for JSON, the strictest first."""

    JSON_SCHEMA = 0
    JSON_OBJECT = 1
    TEXT = 2


@dataclass(slots=True)
class Spend:
    """What a piece of work has cost so far; filled while it runs, so that a failure is paid for in the books too.

    `budget` is what its calls are paid from first, where its job has one; `recording` is where they are written down so
    that a kill cannot take them.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    #: Answers whose tokens the server did not count: they were estimated.
    estimated: int = 0
    budget: "JobBudget | None" = None
    recording: Recording | None = None

    def sending(self) -> None:
        """See `CallCounter`."""

    def unsent(self) -> None:
        """See `CallCounter`."""

    def sent(self) -> None:
        """Count a call of which nothing more is known."""
        self.calls += 1

    def call(self, expected: Expected) -> "CallUnderWay":
        """A call that is about to be made, and what it is likely to cost."""
        return CallUnderWay(self, expected)

    def take(self, other: "Spend") -> None:
        """Count what another has counted, and written down if that was to be done."""
        self.calls += other.calls
        self._add(other.prompt_tokens, other.completion_tokens, other.cost_usd, other.estimated)

    def add_tokens(self, prompt: int, completion: int, cost: float | None, *, estimated: int = 0) -> None:
        """Count the tokens of one answer, or of several of which so many are estimates."""
        if self.recording:
            self.recording.ended(
                0, prompt_tokens=prompt, completion_tokens=completion, cost_usd=cost, estimated=estimated
            )
        self._add(prompt, completion, cost, estimated)

    def _add(self, prompt: int, completion: int, cost: float | None, estimated: int) -> None:
        self.estimated += estimated
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.cost_usd = None if self.cost_usd is None or cost is None else self.cost_usd + cost


class CallUnderWay:
    """One call on its way, or several while the client learns how to ask; each counts in its spend once it is sent."""

    __slots__ = ("_expected", "_recording", "_sent", "_spend")

    def __init__(self, spend: Spend, expected: Expected) -> None:
        self._spend = spend
        self._recording = spend.recording
        self._expected = expected
        self._sent = 0

    def __repr__(self) -> str:
        return f"<CallUnderWay sent={self._sent}>"

    def sending(self) -> None:
        """The next thing that happens is that it is handed to the operating system."""
        if self._recording:
            self._recording.sending()

    def unsent(self) -> None:
        """It was not: nobody will hear of it."""
        if self._recording:
            self._recording.unsent()

    def sent(self) -> None:
        """It was."""
        self._spend.calls += 1
        self._sent += 1
        if self._recording:
            self._recording.sent(self._expected)

    def answered(self, prompt: int, completion: int, cost: float | None, *, estimated: bool) -> None:
        """Count the answer in place of what was expected."""
        self._spend._add(prompt, completion, cost, int(estimated))  # noqa: SLF001  # the two are one machine
        sent, self._sent = self._sent, 0
        if self._recording:
            self._recording.ended(
                sent,
                self._expected,
                prompt_tokens=prompt,
                completion_tokens=completion,
                cost_usd=cost,
                estimated=int(estimated),
            )

    def ended(self) -> None:
        """It is over. Without an answer it has cost a call, and no tokens that anybody knows of."""
        if self._sent and self._recording:
            self._recording.ended(self._sent, self._expected)
        self._sent = 0


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer as it came. `estimated` says that the server did not count tokens and we did, by length.

    `cool_down_seconds` is when the endpoint may be asked again, where its headers say that nothing remains.
    """

    text: str
    is_truncated: bool
    model: str
    prompt_tokens: int
    completion_tokens: int
    estimated: bool
    style: AnswerFormat
    cool_down_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier answer and what was wrong with it, for the one re-ask."""

    answer: str
    problem: str


class _FormatRefusedError(ThemesError):
    """The server does not know the response format; the next weaker one may do."""


class _TokenParameterRefusedError(ThemesError):
    """The server wants the token limit under its other name."""


@dataclass(slots=True)
class Dialect:
    """What an endpoint has been found to understand."""

    format: AnswerFormat = AnswerFormat.JSON_SCHEMA
    limit_parameter: str = "max_tokens"
    #: 500s in a row without a word about the format.
    unexplained: int = 0
    #: Invalid answers in a format that has never given a valid one.
    unusable: int = 0
    #: Formats that have given a valid answer: a later error is not the format's fault.
    proven: set[AnswerFormat] = field(default_factory=set)


class ChatClient:
    """Asks for one model at one server. The connections are whoever's it shares them with.

    `style` is the response format to begin with.
    """

    def __init__(
        self,
        settings: LlmSettings,
        *,
        base_url: str,
        model: str,
        connections: Connections,
        profiler: PerformanceProfiler = SILENT,
        labels: Mapping[str, str] | None = None,
        style: AnswerFormat = AnswerFormat.JSON_SCHEMA,
    ) -> None:
        self.model = model
        self._base_url = base_url
        #: As errors and logs show it.
        self._place = masked(base_url)
        self._secret = connections.secret
        self._settings = settings
        self._session = connections.session
        self._connections = connections
        self._profiler = profiler
        #: Of the counter of requests, and its fields by outcome.
        self._labels = dict(labels or {})
        self._counters: dict[str, str] = {}
        self._dialect = Dialect(format=style)

    def __repr__(self) -> str:
        return f"<ChatClient {self._place} model={self.model} format={self._dialect.format.name.lower()}>"

    @property
    def base_url(self) -> str:
        """The endpoint, up to and including /v1."""
        return self._base_url

    async def warm(self, connections: int) -> int:
        """Open connections before the first prompt needs them; returns how many were opened."""
        answers = await asyncio.gather(*(self._touch() for _ in range(connections)), return_exceptions=True)
        return sum(1 for answer in answers if answer is None)

    async def _touch(self) -> None:
        async with (
            asyncio.timeout(self._settings.connect_timeout_seconds),
            self._session.get(f"{self._base_url}/models") as response,
        ):
            await bounded_body(response, self._settings.max_response_bytes)

    async def complete(
        self, prompt: Prompt, *, max_tokens: int, spend: CallCounter, history: Sequence[Turn] = ()
    ) -> RawAnswer:
        """Make one call, and more only while learning what the server understands; each is counted when it is sent.

        Raises:
            RetryableError: it may succeed later.
            PermanentError: it will not.
        """
        while True:
            dialect = self._dialect
            style, parameter = dialect.format, dialect.limit_parameter
            body = self._body(prompt, history, style=style, parameter=parameter, max_tokens=max_tokens)
            try:
                answer = await self._post(body, style, spend)
            except _TokenParameterRefusedError as exc:
                if parameter != "max_tokens":
                    raise BadRequestError(str(exc)) from exc
                dialect.limit_parameter = "max_completion_tokens"
            except _FormatRefusedError as exc:
                if style is AnswerFormat.TEXT:
                    raise BadRequestError(str(exc)) from exc
                # Another call may have moved on already; never step back.
                dialect.format = max(dialect.format, AnswerFormat(style + 1))
            else:
                dialect.unexplained = 0
                return answer

    def judge(self, answer: RawAnswer, *, valid: bool) -> None:
        """Learn from the content of a first answer: a server may accept a response format and then ignore it.

        A model behind such a server has never seen the schema. After a few unusable answers, and none that was valid,
        the schema is put into the prompt. (A re-ask shows it in any case, and so proves nothing.)
        """
        dialect, style = self._dialect, answer.style
        if valid:
            dialect.proven.add(style)
            dialect.unusable = 0
        elif style is not AnswerFormat.TEXT and style not in dialect.proven and style is dialect.format:
            dialect.unusable += 1
            if dialect.unusable >= UNUSABLE_ANSWERS:
                dialect.unusable = 0
                dialect.format = AnswerFormat(style + 1)

    def _body(
        self, prompt: Prompt, history: Sequence[Turn], *, style: AnswerFormat, parameter: str, max_tokens: int
    ) -> bytes:
        instructions = prompt.instructions
        if style is not AnswerFormat.JSON_SCHEMA:
            instructions = f"{instructions}\n\nAnswer with one JSON object.\n{SCHEMA_LINE}{prompt.schema.text}"
        messages = [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": f"{instructions}\n\n{prompt.data}"},
        ]
        for turn in history:
            messages.append({"role": "assistant", "content": turn.answer})
            messages.append(
                {
                    "role": "user",
                    "content": f"That was not valid: {turn.problem}\nAnswer again, with one whole object.\n"
                    f"{SCHEMA_LINE}{prompt.schema.text}",
                }
            )
        body: dict[str, Any] = {"model": self.model, "messages": messages, parameter: max_tokens}
        body |= self._settings.extra_body
        if self._settings.temperature is not None:
            body["temperature"] = self._settings.temperature
        if style is AnswerFormat.JSON_SCHEMA:
            described = {"name": prompt.schema.name, "strict": True, "schema": prompt.schema.document}
            body["response_format"] = {"type": "json_schema", "json_schema": described}
        elif style is AnswerFormat.JSON_OBJECT:
            body["response_format"] = {"type": "json_object"}
        return msgspec.json.encode(body)

    async def _post(self, body: bytes, style: AnswerFormat, spend: CallCounter) -> RawAnswer:
        """One HTTP request, counted by how it ends."""
        outcome = "cancelled"
        with self._profiler.span("llm.call"):
            try:
                answer = await self._exchange(body, style, spend)
                outcome = "ok"
            except Exception as exc:
                outcome = outcome_of(exc)
                raise
            finally:
                self._count(outcome)
        return answer

    def _count(self, outcome: str) -> None:
        if not self._profiler.enabled:
            return
        if outcome == UNREACHABLE:
            self._profiler.counters.add(counter("llm_unreachable_total", **self._labels))
            return
        if (name := self._counters.get(outcome)) is None:
            name = self._counters[outcome] = counter("llm_requests_total", outcome=outcome, **self._labels)
        self._profiler.counters.add(name)
        self._profiler.count("llm.requests")
        if outcome != "ok":
            self._profiler.count(f"llm.errors.{outcome}")

    async def _send(self, url: str, body: CountedBody) -> tuple[bytes, int, Mapping[str, str]]:
        """Body, status and headers of the answer; measured: to the first byte without connecting, and the rest."""
        began, first = time.perf_counter(), 0.0
        try:
            async with self._session.post(url, data=body, allow_redirects=False) as response:
                first = time.perf_counter()
                raw = await bounded_body(response, self._settings.max_response_bytes)
                return raw, response.status, response.headers
        finally:
            now, connecting = time.perf_counter(), self._connections.connecting_seconds()
            self._profiler.record("llm.first_byte", max(0.0, (first or now) - began - connecting))
            if first:
                self._profiler.record("llm.body", now - first)
            self._profiler.count("connections_opened" if connecting else "connections_reused")

    async def _exchange(self, body: bytes, style: AnswerFormat, spend: CallCounter) -> RawAnswer:
        url = f"{self._base_url}/chat/completions"
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                # Counted as it is sent: a call that hangs or breaks was made, one that could not connect was not.
                raw, status, headers = await self._send(url, CountedBody(body, spend))
        except aiohttp.ClientConnectorError as exc:
            message = f"{self._place}: cannot connect ({exc.strerror or exc})"
            raise EndpointAwayError(message, is_unreachable=True) from exc
        except TimeoutError as exc:
            seconds = self._settings.request_timeout_seconds
            raise EndpointAwayError(f"{self._place}: no answer within {seconds:g} s") from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise EndpointAwayError(f"{self._place}: connection lost ({type(exc).__name__}: {exc})") from exc
        if status != 200:  # noqa: PLR2004
            raise self._error(status, headers, raw, style)
        answer = self._answer(raw, body, style)
        cool_down = exhausted_seconds(headers)
        return answer if cool_down is None else replace(answer, cool_down_seconds=cool_down)

    def _error(self, status: int, headers: Mapping[str, str], raw: bytes, style: AnswerFormat) -> ThemesError:
        """What an HTTP error means."""
        message, code = error_text(raw)
        message = self._without_secret(message)
        place = f"{self._place}: {status} {message}"
        if self._blames_format(status, message, style):
            return _FormatRefusedError(place)
        if status in {400, 422} and "max_completion_tokens" in message:
            return _TokenParameterRefusedError(place)
        if status == 429 and code not in _QUOTA_CODES:  # noqa: PLR2004
            asked = retry_after_seconds(headers, now=time.time())
            return RateLimitedError(place, retry_after_seconds=exhausted_seconds(headers) if asked is None else asked)
        if status in _AWAY:
            return EndpointAwayError(place)
        if status in {408, 409, 425} or status >= 500:  # noqa: PLR2004
            return EndpointDownError(place)
        hint = _HINTS.get(status)
        return EndpointRefusedError(f"{place} ({hint})") if hint else BadRequestError(place)

    def _without_secret(self, said: str) -> str:
        """What a server says, without our key: some repeat it when they refuse it."""
        return said.replace(self._secret, "***") if self._secret else said

    def _blames_format(self, status: int, message: str, style: AnswerFormat) -> bool:
        """Whether an error is about the response format.

        A 400 or 500 that names it is. So is the third 500 in a row on a format that has never worked here: some
        servers answer 500 to every schema that they cannot compile, and retries would be burnt on it.
        """
        if status in {400, 422, 500, 501} and any(word in message.lower() for word in _FORMAT_WORDS):
            return style is not AnswerFormat.TEXT
        if status not in {500, 501} or style in self._dialect.proven:
            return False
        self._dialect.unexplained += 1
        if self._dialect.unexplained < UNEXPLAINED_ERRORS:
            return False
        self._dialect.unexplained = 0
        if style is AnswerFormat.TEXT:
            # Nothing works: then it was never the format.
            self._dialect.format = AnswerFormat.JSON_SCHEMA
            return False
        return True

    def _answer(self, raw: bytes, body: bytes, style: AnswerFormat) -> RawAnswer:
        try:
            data = msgspec.json.decode(raw)
        except (msgspec.DecodeError, RecursionError) as exc:
            shown = raw[:ERROR_CHARACTERS].decode("utf-8", "replace").strip()
            raise EndpointDownError(f"{self._place}: status 200, but no JSON: {self._without_secret(shown)!r}") from exc
        if not isinstance(data, dict):
            raise EndpointDownError(f"{self._place}: status 200, but no object")
        if data.get("error"):
            message, code = error_text(raw)
            number = code if isinstance(code, int) else None
            if number is not None and 400 <= number < 600:  # noqa: PLR2004
                raise self._error(number, {}, raw, style)
            raise EndpointDownError(f"{self._place}: status 200 with an error: {self._without_secret(message)}")
        choices = data.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise EndpointDownError(f"{self._place}: an answer without choices")
        return self._choice(choices[0], data, body, style)

    def _choice(self, choice: dict[str, Any], data: dict[str, Any], body: bytes, style: AnswerFormat) -> RawAnswer:
        message = choice.get("message") or {}
        usage: dict[str, Any] = data["usage"] if isinstance(data.get("usage"), dict) else {}
        text = content_of(message)
        estimated = not all(isinstance(usage.get(key), int) for key in ("prompt_tokens", "completion_tokens"))
        answer = RawAnswer(
            text=text,
            is_truncated=choice.get("finish_reason") == "length",
            model=str(data.get("model") or self.model),
            prompt_tokens=len(body) // CHARACTERS_PER_TOKEN if estimated else int(usage["prompt_tokens"]),
            completion_tokens=len(text) // CHARACTERS_PER_TOKEN if estimated else int(usage["completion_tokens"]),
            estimated=estimated,
            style=style,
        )
        refusal = message.get("refusal")
        if refusal:
            raise AnsweredRefusalError(f"the model declined: {str(refusal)[:ERROR_CHARACTERS]}", answer)
        if choice.get("finish_reason") == "content_filter":
            raise AnsweredRefusalError("the provider's content filter cut the answer", answer)
        return answer


def outcome_of(exc: Exception) -> str:
    """How a request that failed is counted: a refusal for the rate, nobody there, or the error's class."""
    if isinstance(exc, RateLimitedError):
        return "rate_limited"
    if isinstance(exc, EndpointAwayError) and exc.is_unreachable:
        return UNREACHABLE
    return type(exc).__name__.strip("_")


class AnsweredRefusalError(RefusedError):
    """A refusal is an answer, and is paid for: `answer` has its tokens."""

    def __init__(self, message: str, answer: RawAnswer) -> None:
        super().__init__(message)
        self.answer = answer
