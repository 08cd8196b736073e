"""From a request to an answer: retries, other endpoints, second requests for late ones, and what all of it costs.

No caller waits here while it holds a connection.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Final, NoReturn

import msgspec
from msgspec.structs import replace

from config.endpoints import FLEX, STANDARD
from config.settings import Settings
from tasks import tracing
from tasks.errors import (
    AccountRefusedError,
    BadRequestError,
    EndpointDownError,
    EndpointRefusedError,
    NoCapacityError,
    RateLimitedError,
    ThemesError,
)
from tasks.prices.rates import TokenCounts
from workers.llm.billing import Billing
from workers.llm.budget import worst_case_nano
from workers.llm.cancellation import CancellationToken
from workers.llm.cost import TokenEstimate, prompt_tokens
from workers.llm.endpoints.pool import CircuitOpenError, Lease, LLMConnectionPool
from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.reply import AnsweredRefusalError, RawAnswer
from workers.llm.endpoints.request import Turn
from workers.llm.endpoints.route import Route
from workers.llm.hedge import Lateness, first_of
from workers.llm.spend import CallUnderWay, Spend
from workers.observe.call_journal import Expected
from workers.observe.profiler import PerformanceProfiler

log = logging.getLogger("themes.llm")

#: Refusals in a row that count as one failure while the endpoint answers others.
REFUSALS_A_RETRY: Final = 10
#: Refusals of the account in a row, without an answer to anything in between, after which the job pauses.
MAX_ACCOUNT_REFUSALS: Final = 3
#: Prompts that endpoints which have never answered may refuse one after the other, before the job pauses: it is not the
#: prompts then, whatever the words.
MAX_PROMPT_REFUSALS: Final = 30


class Request(msgspec.Struct, eq=False):
    """One prompt on its way: for which destination, how it is asked, and which endpoint answers it."""

    prompt: Prompt
    model: str
    spend: Spend
    #: Lower ranks get the next free connection first.
    request_priority: int
    max_tokens: int
    history: Sequence[Turn] = ()
    #: Leave to ask; withdrawn when the job is stopped.
    token: CancellationToken = msgspec.field(default_factory=CancellationToken)
    #: Endpoints that have just failed on it.
    avoid: set[Route] = msgspec.field(default_factory=set)
    #: The endpoint that was asked last.
    route: Route | None = None
    #: Set when it is sent, where that is waited for.
    sent: asyncio.Event | None = None
    is_answered: bool = False
    #: At which service tier it is bought; empty: as the endpoint's settings say.
    tier: str = ""


def backoff_seconds(attempt: int, *, base: float, most: float, draw: float) -> float:
    """Seconds before retry number `attempt` (from 1): exponential with full jitter; `draw` is random in 0-1.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. Half of the delay is kept, so that
    a retry never comes at once.
    """
    ceiling = min(most, base * float(2 ** (attempt - 1)))
    return ceiling / 2 + draw * ceiling / 2


class Caller:
    def __init__(self, pool: LLMConnectionPool, *, settings: Settings, profiler: PerformanceProfiler) -> None:
        self._pool = pool
        self._settings = settings
        self.billing = Billing(settings)
        self._profiler = profiler
        self._estimate = TokenEstimate()
        self._lateness = Lateness()
        #: Answers of the endpoints: they are alive, whatever they refuse.
        self._answers = 0
        #: Refusals of the account since an answer to a later request, and when the first came, by model.
        self._refusals: dict[str, tuple[int, float]] = {}
        #: Prompts refused before any was answered.
        self._refused_prompts = 0
        #: Since when a model has had no capacity for the tier flex.
        self._no_capacity: dict[str, float] = {}
        #: Second requests made because the first was late.
        self.hedged = 0

    def __repr__(self) -> str:
        return f"<Caller answers={self._answers} hedged={self.hedged} {self._pool!r}>"

    async def answer(self, request: Request) -> RawAnswer:
        """One answer; what may pass is retried with backoff.

        A 429 is waited for in the endpoint's cool-down. While the endpoint answers others meanwhile, it counts as a
        retry only one time in `REFUSALS_A_RETRY`. When the endpoint answers nothing, the pause grows as after any other
        failure.

        Another endpoint that may answer is asked at once; only when all have failed is this one try. While all of them
        are away, everything waits until one is back, or `wait_for_endpoint_seconds` have passed. The job pauses where
        they refuse the account and answer nothing in between, and where they have refused `MAX_PROMPT_REFUSALS` prompts
        and never answered one.

        Raises:
            PermanentError: the request is refused.
            RetryableError: no answer within `max_llm_retries` tries.
            JobPausedError: the job's budget allows no more, or the account is refused.
            JobStoppedError: the job is to stop.
        """
        limits = self._settings.performance_optimization
        attempt, refusals, answers = 0, 0, self._answers
        while True:
            request.token.check()
            try:
                return await self._attempt(request)
            except RateLimitedError as exc:
                refusals += 1
                is_failure = self._answers == answers or refusals % REFUSALS_A_RETRY == 0
                attempt, answers = attempt + is_failure, self._answers
                if attempt > limits.max_llm_retries:
                    raise
                delay = self._delay(exc, max(1, attempt))
                if is_failure and attempt > 1:
                    delay = max(delay, self._backoff(attempt))
                self._say(request, attempt, delay, exc)
                if request.route is not None:
                    asked = exc.retry_after_seconds
                    await request.route.limiter.cool_down.begin(delay, said=str(exc), asked=asked)
            except (EndpointDownError, EndpointRefusedError) as exc:
                if self._goes_on(request, exc):
                    continue
                attempt += 1
                if attempt > limits.max_llm_retries:
                    raise
                # An open circuit is a pause by itself.
                delay = 0.0 if isinstance(exc, CircuitOpenError) else self._backoff(attempt)
                self._say(request, attempt, delay, exc)
                # While the call was under way the job may have been stopped: then there is no next try to wait for.
                request.token.check()
                with self._profiler.span("llm.backoff"):
                    await asyncio.sleep(delay)
            except BadRequestError as exc:
                self._prompt_refused(request, exc)
                raise

    def _goes_on(self, request: Request, exc: ThemesError) -> bool:
        """Whether to ask again at once: another endpoint may answer, or all are away and a circuit is waited for."""
        if self._fails_over(request, exc) or self._pool.outage(request.model):
            return True
        if isinstance(exc, EndpointRefusedError):
            self._account_refused(request, exc)
        return False

    def _account_refused(self, request: Request, exc: EndpointRefusedError) -> None:
        """Pause the job when the account was refused a few times in a row: one odd refusal is no reason."""
        count, first_at = self._refusals.get(request.model, (0, time.monotonic()))
        self._refusals[request.model] = count + 1, first_at
        if count + 1 >= MAX_ACCOUNT_REFUSALS:
            self._pause(request, exc)

    def _prompt_refused(self, request: Request, exc: BadRequestError) -> None:
        """Pause the job when nothing but refusals has come from the first prompt on."""
        self._refused_prompts += self._answers == 0
        if self._answers == 0 and self._refused_prompts >= MAX_PROMPT_REFUSALS:
            self._pause(request, exc)

    @staticmethod
    def _pause(request: Request, exc: BadRequestError) -> NoReturn:
        """Pause the request's job; without a job the error itself is raised."""
        cancellation = request.token.cancellation
        if not cancellation.job_id:
            raise exc
        error = AccountRefusedError(str(exc), job_id=cancellation.job_id)
        cancellation.pause(error)
        raise error from exc

    def _fails_over(self, request: Request, exc: ThemesError) -> bool:
        """Whether another endpoint may answer now what this one could not; else all of them are asked anew."""
        if request.route is not None and not isinstance(exc, CircuitOpenError):
            request.avoid.add(request.route)
            if self._pool.others(request.model, request.avoid):
                log.info("action=llm_failover stage=%s from=%s %s", request.prompt.stage, request.route.name, exc)
                return True
        request.avoid.clear()
        return False

    @staticmethod
    def _say(request: Request, attempt: int, delay: float, exc: Exception) -> None:
        log.info("action=llm_retry stage=%s attempt=%d delay_s=%.2f %s", request.prompt.stage, attempt, delay, exc)

    def _attempt(self, request: Request) -> Coroutine[Any, Any, RawAnswer]:
        may_wait = self.billing.tiers.may_be_flex(request.tier)
        return self._patiently(request) if may_wait else self._once(request)

    async def _patiently(self, request: Request) -> RawAnswer:
        """One answer, at the tier flex as long as the job's deadline and `llm.flex_patience_seconds` allow.

        While there is no capacity it waits without a connection, and the rate limit learns nothing. Each call tries
        flex once, also when others have run out of patience: so it is seen that there is some again.
        """
        deadline, waits = request.spend.terms.deadline_at, 0
        while True:
            if deadline is not None and time.time() >= deadline:
                request.tier = STANDARD
            try:
                return await self._once(request)
            except NoCapacityError as exc:
                since = self._no_capacity.setdefault(request.model, time.monotonic())
                left = since + self._settings.llm.flex_patience_seconds - time.monotonic()
                if left <= 0:
                    log.info("action=llm_tier stage=%s standard instead of flex: %s", request.prompt.stage, exc)
                    request.tier = STANDARD
                    continue
                waits += 1
                left = left if deadline is None else min(left, max(0.0, deadline - time.time()))
                with self._profiler.span("llm.backoff"):
                    await asyncio.sleep(min(left, max(self._backoff(waits), exc.retry_after_seconds or 0.0)))
            request.token.check()

    def _once(self, request: Request) -> Coroutine[Any, Any, RawAnswer]:
        """One answer; where hedging is on, from the first of two requests when one alone is late."""
        after = self._lateness.after_seconds(request.prompt.stage) if self._settings.llm.hedge else None
        return self._paid(request) if after is None else self._hedged(request, after)

    async def _hedged(self, request: Request, after: float) -> RawAnswer:
        sent = asyncio.Event()
        first = replace(request, avoid={*request.avoid}, sent=sent)
        second = replace(first, sent=None)

        async def late() -> None:
            await sent.wait()
            await asyncio.sleep(after)

        async def again() -> RawAnswer:
            self.hedged += 1
            if first.route is not None:
                second.avoid = {*first.avoid, first.route}
            return await self._paid(second)

        try:
            return await first_of(self._paid(first), again, is_late=late())
        finally:
            # The answer is judged by the route that gave it.
            request.route = second.route if second.is_answered else first.route

    def _paid(self, request: Request) -> Coroutine[Any, Any, RawAnswer]:
        """One call, reserved from the job's budget first where it has one."""
        budget = request.spend.budget
        if budget is None:
            return self._send(request, request.spend)
        worst = worst_case_nano(
            self.billing.prices, request.model, request.prompt, max_tokens=request.max_tokens, history=request.history
        )
        worst = worst and math.ceil(worst * self.billing.tiers.dearest(request.tier))
        return budget.pay(
            worst, request.spend, lambda spend: self._send(request, spend), request_priority=request.request_priority
        )

    async def _send(self, request: Request, spend: Spend) -> RawAnswer:
        """One call, at its turn under the rate limits and over the next free connection."""
        expected = self._expected(request)
        tokens = expected.prompt_tokens + expected.completion_tokens
        async with self._pool.connection(
            request.model, request_priority=request.request_priority, tokens=tokens, avoid=request.avoid
        ) as lease:
            # In line the job may have been stopped.
            request.token.check()
            request.route = lease.route
            if request.sent is not None:
                request.sent.set()
            with request.token, spend.call(expected) as call:
                raw = await self._complete(request, lease, call)
        request.is_answered = True
        if raw.cool_down_seconds:
            await lease.route.limiter.cool_down.begin(raw.cool_down_seconds, asked=raw.cool_down_seconds)
        return raw

    async def _complete(self, request: Request, lease: Lease, call: CallUnderWay) -> RawAnswer:
        """The endpoint's answer; the pool and the books learn how the call ended."""
        began = time.perf_counter()
        try:
            with tracing.span(
                "llm.call", "client", stage=request.prompt.stage, endpoint=lease.route.name,
                gen_ai__operation__name="chat", gen_ai__request__model=request.model,
                gen_ai__request__max_tokens=request.max_tokens,
            ) as span:  # fmt: skip
                raw = await lease.route.client.complete(
                    request.prompt,
                    max_tokens=request.max_tokens,
                    spend=call,
                    history=request.history,
                    tier=request.tier,
                )
                tracing.note(
                    span, gen_ai__response__model=raw.model, gen_ai__usage__input_tokens=raw.tokens.prompt,
                    gen_ai__usage__output_tokens=raw.tokens.completion,
                )  # fmt: skip
        except AnsweredRefusalError as exc:
            self._settle(request, exc.answer, lease, call)
            raise
        except NoCapacityError:
            lease.slot.settle(0)
            raise
        except RateLimitedError:
            lease.slot.settle(0)
            self._pool.refused(lease)
            raise
        except (EndpointDownError, EndpointRefusedError) as exc:
            # One that refuses us is left alone only where another may answer instead.
            for_good = isinstance(exc, EndpointRefusedError)
            if not for_good or self._pool.others(request.model, {lease.route}):
                self._pool.failed(lease, exc, for_good=for_good)
            raise
        if self._settings.llm.hedge:
            self._lateness.learn(request.prompt.stage, time.perf_counter() - began)
        self._settle(request, raw, lease, call)
        return raw

    def _settle(self, request: Request, raw: RawAnswer, lease: Lease, call: CallUnderWay) -> None:
        """An answer came: what was reserved for it becomes what it was, and it is paid for."""
        self._answers += 1
        if request.model in self._refusals and lease.sent_at > self._refusals[request.model][1]:
            del self._refusals[request.model]
        self._pool.answered(lease)
        if raw.tier == FLEX:
            self._no_capacity.pop(request.model, None)
        tokens = raw.tokens
        self._estimate.learn(request.prompt.stage, tokens.completion)
        lease.slot.settle(tokens.prompt + tokens.completion)
        call.answered(self.billing.bill(raw, request.model, lease.route.client))
        lease.route.count_tokens(self._profiler.counters, tokens.prompt, tokens.completion)

    def _expected(self, request: Request) -> Expected:
        """What a call is likely to cost, by the length of its prompt and of its stage's other answers."""
        asks = prompt_tokens(request.prompt)
        answers = self._estimate.completion(request.prompt, request.max_tokens)
        return Expected(asks, answers, self.billing.prices.usd(request.model, TokenCounts(asks, answers)))

    def _delay(self, exc: RateLimitedError, attempt: int) -> float:
        asked = exc.retry_after_seconds
        if asked is None:
            return self._backoff(attempt)
        # What the server asks for is a minimum; a little jitter keeps its clients from coming back as one.
        return asked + random.random() * min(1.0, asked / 10 + 0.05)  # noqa: S311

    def _backoff(self, attempt: int) -> float:
        limits = self._settings.performance_optimization
        draw = random.random()  # noqa: S311  # jitter
        return backoff_seconds(attempt, base=limits.retry_base_delay, most=limits.retry_max_delay, draw=draw)
