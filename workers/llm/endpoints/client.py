"""One model at one OpenAI-compatible endpoint.

Why not an SDK: CPU per call at 64 in flight is 0.11 ms here and 2.1 ms in the official one, and retries inside an SDK
cannot be coordinated (docs/explanation/design.md). The client makes one HTTP request and says what came of it;
retrying, validating and caching are the generator's.

Servers differ, and the client learns: a refused `response_format` is replaced by the next weaker one
(json_schema -> json_object -> the schema in the prompt), a refused parameter is renamed, lowered or left out
(`workers.llm.endpoints.faults`), and what worked is remembered for the endpoint.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace
from yarl import URL

from config.endpoints import BATCH, FLEX, STANDARD
from config.sections import LlmSettings
from tasks.errors import (
    BadRequestError,
    EndpointAwayError,
    EndpointDownError,
    EndpointRefusedError,
    NoCapacityError,
    RateLimitedError,
    RejectedAnswerError,
    ThemesError,
)
from workers.llm.endpoints.bodies import bounded_body
from workers.llm.endpoints.connections import Connections
from workers.llm.endpoints.counted_body import CallCounter, CountedBody
from workers.llm.endpoints.dialect import Dialect
from workers.llm.endpoints.error_body import ErrorBody, error_body, error_value
from workers.llm.endpoints.faults import Fault, fault_of
from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.reply import AnswerFormat, ErrorInAnswerError, RawAnswer, model_names, read_reply
from workers.llm.endpoints.request import Turn, request_of
from workers.llm.endpoints.server_errors import NETWORK_ERRORS, ServerErrors
from workers.llm.limits.headers import exhausted_seconds
from workers.observe.counters import field as counter
from workers.observe.profiler import SILENT, PerformanceProfiler

log = logging.getLogger("themes.llm")

#: How a request is counted that reached no server.
UNREACHABLE: Final = "unreachable"


class _FormatRefusedError(ThemesError):
    """The server does not know the response format; the next weaker one may do."""


class _ParameterRefusedError(ThemesError):
    """The server does not take a parameter as it was sent."""

    def __init__(self, message: str, error: ErrorBody) -> None:
        super().__init__(message)
        self.error = error


class ChatClient:
    """Asks for one model at one server. `style` is the response format to begin with."""

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
        self.base_url = base_url
        self.errors = ServerErrors(base_url, connections.secrets, settings.request_timeout_seconds)
        #: As errors and logs show it.
        self._place = self.errors.place
        behind = f"?{connections.query}" if connections.query else ""
        self._chat_url, self._models_url = (
            URL(f"{base_url}/{path}{behind}") for path in ("chat/completions", "models")
        )
        self._settings = settings
        self.connections = connections
        self._session = connections.session
        self._connector = connections.connector
        self._profiler = profiler
        #: Of the counter of requests, and its fields by outcome.
        self._labels = dict(labels or {})
        self._counters: dict[str, str] = {}
        self._dialect = Dialect(format=style)
        self._has_told_of_usage = False

    def __repr__(self) -> str:
        return f"<ChatClient {self._place} model={self.model} format={self._dialect.format.name.lower()}>"

    async def warm(self, connections: int) -> int:
        answers = await asyncio.gather(*(self._touch() for _ in range(connections)), return_exceptions=True)
        return sum(1 for answer in answers if answer is None)

    async def _touch(self) -> None:
        async with (
            asyncio.timeout(self._settings.connect_timeout_seconds),
            self._session.get(self._models_url) as response,
        ):
            await bounded_body(response, self._settings.max_response_bytes)

    async def models(self) -> frozenset[str]:
        """Ask for the names of the models that the server lists, which costs nothing. Raises as `complete`."""
        try:
            async with (
                asyncio.timeout(self._settings.request_timeout_seconds),
                self._session.get(self._models_url, allow_redirects=False) as response,
            ):
                raw = await bounded_body(response, self._settings.max_response_bytes)
        except NETWORK_ERRORS as exc:
            raise self.errors.of_network(exc) from exc
        if response.status != 200:  # noqa: PLR2004
            raise self.errors.of(response.status, response.headers, error_body(raw))
        return model_names(raw)

    async def complete(
        self, prompt: Prompt, *, max_tokens: int, spend: CallCounter, history: Sequence[Turn] = (), tier: str = ""
    ) -> RawAnswer:
        """Make one call, and more only while learning what the server understands; each is counted when it is sent.

        Without a `tier` it is bought as the settings of this endpoint say.

        Raises `RetryableError` or `PermanentError`.
        """
        while True:
            style = self._dialect.format
            parameters = self._parameters(prompt.stage, max_tokens, tier)
            request = request_of(self.model, prompt, history, style) | parameters
            try:
                answer = await self._post(msgspec.json.encode(request), style, spend)
            except NoCapacityError as exc:
                if parameters.get("service_tier") != FLEX:
                    raise RateLimitedError(str(exc), retry_after_seconds=exc.retry_after_seconds) from exc
                raise
            except _ParameterRefusedError as exc:
                # Another call may have changed them meanwhile.
                if self._parameters(prompt.stage, max_tokens, tier) == parameters:
                    self._change_parameters(exc, parameters, prompt.stage)
            except _FormatRefusedError as exc:
                self._dialect.refused(style)
                log.info("action=llm_format endpoint=%s %s instead of %s: %s",
                         self._place, self._dialect.format.name, style.name, exc)  # fmt: skip
            else:
                self._dialect.unexplained = 0
                return replace(answer, limit_tokens=parameters[self._dialect.parameters.limit_name])

    def _parameters(self, stage: str, max_tokens: int, tier: str) -> dict[str, Any]:
        learnt, settings = self._dialect.parameters, self._settings
        found: dict[str, Any] = {learnt.limit_name: min(max_tokens, learnt.ceilings.get(stage, max_tokens))}
        found |= settings.extra_body
        if tier == STANDARD or (tier or settings.tier) == BATCH:
            # It was decided for this call, whatever the extra fields say.
            found.pop("service_tier", None)
        elif (tier := tier or settings.tier) != STANDARD:
            found["service_tier"] = tier
        if settings.temperature is not None:
            found["temperature"] = settings.temperature
        if settings.reasoning_effort is not None:
            found["reasoning_effort"] = settings.reasoning_effort
        return {name: value for name, value in found.items() if name not in learnt.dropped}

    def _change_parameters(self, exc: _ParameterRefusedError, parameters: Mapping[str, Any], stage: str) -> None:
        """Ask differently from now on. Raises `BadRequestError`: there is nothing to change."""
        changed = self._dialect.parameters.learn(exc.error, parameters, stage)
        if changed is None:
            raise BadRequestError(str(exc)) from exc
        log.warning("action=llm_parameter endpoint=%s model=%s %s: %s", self._place, self.model, changed, exc)

    def judge(self, answer: RawAnswer, *, valid: bool) -> None:
        """Learn from a first answer whether the response format is understood."""
        self._dialect.judge(answer.style, valid=valid)

    def body(self, prompt: Prompt, max_tokens: int) -> bytes:
        """A request as it would be sent now, at no service tier."""
        style = self._dialect.format
        request = request_of(self.model, prompt, (), style) | self._parameters(prompt.stage, max_tokens, STANDARD)
        return msgspec.json.encode(request)

    def mark(self) -> str:
        """How requests are asked now: it changes with what the server teaches."""
        return self._dialect.mark()

    def learn(self, status: int, raw: bytes, prompt: Prompt, mark: str) -> bool:
        """Learn from a refusal of `prompt`, asked as it was at `mark`; whether it is to be asked differently now."""
        # A server error is no word about how it wants to be asked.
        if status < 500 and self._dialect.is_as(mark, prompt.stage):  # noqa: PLR2004
            style = self._dialect.format
            try:
                raise self._error(status, {}, error_body(raw), style)
            except _FormatRefusedError:
                self._dialect.refused(style)
            except _ParameterRefusedError as exc:
                sent = self._parameters(prompt.stage, prompt.max_tokens, STANDARD)
                with contextlib.suppress(BadRequestError):
                    self._change_parameters(exc, sent, prompt.stage)
            except ThemesError as exc:
                log.debug("action=llm_refusal endpoint=%s %s", self._place, exc)
        return not self._dialect.is_as(mark, prompt.stage)

    async def _post(self, body: bytes, style: AnswerFormat, spend: CallCounter) -> RawAnswer:
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

    async def _exchange(self, body: bytes, style: AnswerFormat, spend: CallCounter) -> RawAnswer:
        """Send a request within the time of one; measured: to the first byte without connecting, and the rest."""
        began, first = time.perf_counter(), 0.0
        # Counted as it is sent: a call that hangs or breaks was made, one that could not connect was not.
        data = CountedBody(body, spend)
        try:
            async with (
                asyncio.timeout(self._settings.request_timeout_seconds),
                self._session.post(self._chat_url, data=data, allow_redirects=False) as response,
            ):
                first = time.perf_counter()
                raw = await bounded_body(response, self._settings.max_response_bytes)
                status, headers = response.status, response.headers
        except NETWORK_ERRORS as exc:
            raise self.errors.of_network(exc) from exc
        finally:
            now, connecting = time.perf_counter(), self._connector.connecting_seconds()
            self._profiler.record("llm.first_byte", max(0.0, (first or now) - began - connecting))
            if first:
                self._profiler.record("llm.body", now - first)
            self._profiler.count("connections_opened" if connecting else "connections_reused")
        if not 200 <= status < 300:  # noqa: PLR2004
            raise self._error(status, headers, error_body(raw), style)
        answer = self._answer(raw, body, style)
        cool_down = exhausted_seconds(headers, endpoint=self._place)
        return answer if cool_down is None else replace(answer, cool_down_seconds=cool_down)

    def _answer(self, raw: bytes, body: bytes, style: AnswerFormat) -> RawAnswer:
        try:
            answer = read_reply(raw, model=self.model, style=style, prompt_characters=len(body))
        except ErrorInAnswerError as exc:
            error = error_value(exc.error)
            # An error that no rule knows, and without a status, is no fault of the prompt.
            if error.number is not None or fault_of(400, error).has_words:
                raise self._error(error.number or 400, {}, error, style, sent=200) from exc
            raise EndpointDownError(f"{self._place}: {exc}: {self.errors.without_secret(error.message)}") from exc
        except (EndpointDownError, EndpointRefusedError) as exc:
            raise type(exc)(f"{self._place}: {self.errors.without_secret(str(exc))}") from exc
        if answer.tokens.problem and not self._has_told_of_usage:
            self._has_told_of_usage = True
            log.warning(
                "action=llm_usage endpoint=%s model=%s counts no tokens that can be true (%s): they are estimated",
                self._place, self.model, answer.tokens.problem,
            )  # fmt: skip
        return answer

    def _error(
        self,
        status: int,
        headers: Mapping[str, str],
        error: ErrorBody,
        style: AnswerFormat,
        *,
        sent: int | None = None,
    ) -> ThemesError:
        """What an error of the server means (`workers.llm.endpoints.faults`); `sent` is the response's own status."""
        rule = fault_of(status, error)
        said = self.errors.said(sent or status, error, rule)
        match rule.fault:
            case Fault.PARAMETER:
                return _ParameterRefusedError(said, error)
            case Fault.FORMAT:
                return self._format_error(said, status, style)
            case Fault.ENDPOINT:
                return _FormatRefusedError(said) if self._dialect.failed(status, style) else EndpointDownError(said)
        return self.errors.of_rule(rule, said, headers, error)

    def _format_error(self, place: str, status: int, style: AnswerFormat) -> ThemesError:
        """A format that has worked is not at fault: the model's answer was."""
        if style in self._dialect.proven:
            return RejectedAnswerError(place)
        if style is not AnswerFormat.TEXT:
            return _FormatRefusedError(place)
        return EndpointDownError(place) if status >= 500 else BadRequestError(place)  # noqa: PLR2004


def outcome_of(exc: Exception) -> str:
    if isinstance(exc, RateLimitedError):
        return "rate_limited"
    if isinstance(exc, NoCapacityError):
        return "no_capacity"
    if isinstance(exc, EndpointAwayError) and exc.is_unreachable:
        return UNREACHABLE
    return type(exc).__name__.strip("_")
