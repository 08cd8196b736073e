"""From a prompt to a validated completion, paid for at most once.

    cache -> single flight -> rate limit -> connection pool -> client -> validation -> cache

The generator decides what a failed or unusable answer means: wait and ask again, ask again with the mistake named, ask
again with more tokens, or give up with an error that says why.
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from config.settings import Settings
from tasks.errors import BudgetExceededError, InvalidAnswerError, RateLimitedError, RetryableError, TruncatedAnswerError
from tasks.messages import Usage
from workers.llm.answers import salvaged
from workers.llm.budget import worst_case_nano
from workers.llm.cache import CachedCompletion, PersistentLLMCache
from workers.llm.client import AnsweredRefusalError, ChatClient, RawAnswer, Spend, Turn
from workers.llm.cost import cost_usd
from workers.llm.estimate import TokenEstimate
from workers.llm.pool import LLMConnectionPool
from workers.llm.prompt import Prompt
from workers.llm.rate_limit import RateLimiter, Slot
from workers.llm.single_flight import SingleFlight
from workers.observe.profiler import PerformanceProfiler

log = logging.getLogger("themes.llm")

#: An answer that was cut off is asked for once more with this many times the tokens.
MORE_TOKENS: Final = 2
#: Refusals in a row that count as one failure while the endpoint answers others.
PATIENCE: Final = 10
#: The sandbox's model name. What it answered for another model's name is not that model's answer.
SANDBOX: Final = "sandbox"

Source = Literal["called", "cached", "coalesced"]


@dataclass(frozen=True, slots=True)
class Completion:
    """A validated answer: the value, which model gave it, and where it came from."""

    value: Any
    model: str
    source: Source


@dataclass(slots=True)
class Account:
    """What one destination's stage has cost and saved; filled while the stage runs, whatever its end.

    The spend's `budget`, where there is one, pays for its calls.
    """

    spend: Spend = field(default_factory=Spend)
    cache_hits: int = 0
    coalesced: int = 0

    def usage(self) -> Usage:
        """The account as it stands."""
        return Usage(
            llm_calls=self.spend.calls,
            cache_hits=self.cache_hits,
            coalesced=self.coalesced,
            prompt_tokens=self.spend.prompt_tokens,
            completion_tokens=self.spend.completion_tokens,
            cost_usd=self.spend.cost_usd,
        )


class TruncatedError(TruncatedAnswerError):
    """Cut off twice. `complete` is what the last answer had in full, not validated; None where nothing was."""

    def __init__(self, message: str, complete: Any) -> None:
        super().__init__(message)
        self.complete = complete


def backoff_seconds(attempt: int, *, base: float, most: float, draw: float) -> float:
    """Seconds before retry number `attempt` (from 1): exponential with full jitter; `draw` is random in 0-1.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. Half of the delay is kept, so that
    a retry never comes at once.
    """
    ceiling = min(most, base * float(2 ** (attempt - 1)))
    return ceiling / 2 + draw * ceiling / 2


class FocusedLLMGenerator:
    """Answers prompts for all destinations of one worker process. Without a `limiter` the limits are its own alone."""

    def __init__(
        self,
        *,
        client: ChatClient,
        pool: LLMConnectionPool,
        cache: PersistentLLMCache,
        profiler: PerformanceProfiler,
        settings: Settings,
        limiter: RateLimiter | None = None,
    ) -> None:
        self._client = client
        self._limiter = limiter or RateLimiter.of(
            settings.llm,
            None,
            base_url=client.base_url,
            model=client.model,
            max_ahead=settings.performance_optimization.llm_connection_pool_size,
        )
        self._estimate = TokenEstimate()
        #: Answers that the endpoint has given to anyone here: it is alive, whatever it refuses.
        self._answers = 0
        self._pool = pool
        self._cache = cache
        self._profiler = profiler
        self._settings = settings
        self._flights: SingleFlight[Completion] = SingleFlight()

    def __repr__(self) -> str:
        return f"<FocusedLLMGenerator {self._client!r} {self._pool!r} {self._flights!r}>"

    async def answer(self, prompt: Prompt, *, account: Account, rank: int, use_cache: bool = True) -> Completion:
        """The completion of a prompt, from the cache, from an equal prompt in flight, or from the LLM.

        Args:
            prompt: what is asked.
            account: is charged for what this prompt costs, also when it fails.
            rank: whose prompt it is; lower ranks get the next free connection first.
            use_cache: False asks the LLM even where the answer is known; the new answer is stored.

        Raises:
            PermanentError: this prompt has no usable answer.
            RetryableError: it had none within `max_llm_retries` tries.
            BudgetExceededError: its job may spend no more.
        """
        key = prompt.key(model=self._client.model, temperature=self._settings.llm.temperature)
        if use_cache:
            with self._profiler.span("cache.get"):
                known = await self._cache.get(key)
            # A user may have shortened the schema's reach by hand: what is served is valid now.
            if known is not None and prompt.schema.is_valid(known.value):
                account.cache_hits += 1
                return Completion(value=known.value, model=known.model, source="cached")
        flight_key = key if use_cache else f"{key}-fresh"
        while True:
            try:
                completion, joined = await self._flights.run(
                    flight_key, lambda: self._ask(prompt, key, account.spend, rank)
                )
                break
            except BudgetExceededError as exc:
                # Another job's budget: whoever only waited for its answer asks for itself.
                if account.spend.budget is not None and account.spend.budget.job_id == exc.job_id:
                    raise
        if joined:
            account.coalesced += 1
            return Completion(value=completion.value, model=completion.model, source="coalesced")
        return completion

    async def _ask(self, prompt: Prompt, key: str, spend: Spend, rank: int) -> Completion:
        value, raw = await self._usable(prompt, spend, rank)
        if raw.model != SANDBOX or self._client.model == SANDBOX:
            stored = CachedCompletion(
                value=value,
                model=raw.model,
                prompt_tokens=raw.prompt_tokens,
                completion_tokens=raw.completion_tokens,
            )
            with self._profiler.span("cache.put"):
                await self._cache.put(key, stored)
        return Completion(value=value, model=raw.model, source="called")

    async def _usable(self, prompt: Prompt, spend: Spend, rank: int) -> tuple[Any, RawAnswer]:
        """Ask until the answer is usable: at most once more for more tokens, and once more for a mistake."""
        max_tokens = prompt.max_tokens
        history: Sequence[Turn] = ()
        while True:
            raw = await self._patiently(prompt, max_tokens, history, spend, rank)
            if raw.is_truncated:
                if max_tokens > prompt.max_tokens:
                    raise TruncatedError(f"cut off at {max_tokens} tokens, twice", salvaged(raw.text))
                max_tokens *= MORE_TOKENS
                continue
            try:
                with self._profiler.span("llm.validate"):
                    value = prompt.schema.read(raw.text)
            except InvalidAnswerError as exc:
                if history:
                    raise InvalidAnswerError(f"{exc}, also when asked again") from exc
                self._client.judge(raw, valid=False)
                history = (Turn(answer=raw.text, problem=str(exc)),)
            else:
                if not history:
                    self._client.judge(raw, valid=True)
                return value, raw

    async def _patiently(
        self, prompt: Prompt, max_tokens: int, history: Sequence[Turn], spend: Spend, rank: int
    ) -> RawAnswer:
        """One answer, retrying what may pass with backoff; nobody waits while holding a connection.

        A 429 is waited for in the endpoint's cool-down, together with everybody else. While the endpoint answers
        others meanwhile, this is a wait in line and no failure: it counts as a retry only one time in `PATIENCE`. When
        it answers nobody, what it asks for is not enough: then the pause grows as after any other failure.
        """
        limits = self._settings.performance_optimization
        attempt, refusals, answers = 0, 0, self._answers
        while True:
            try:
                return await self._paid(prompt, max_tokens, history, spend, rank)
            except RateLimitedError as exc:
                refusals += 1
                is_failure = self._answers == answers or refusals % PATIENCE == 0
                attempt, answers = attempt + is_failure, self._answers
                if attempt > limits.max_llm_retries:
                    raise
                delay = self._delay(exc, max(1, attempt))
                if is_failure and attempt > 1:
                    delay = max(delay, self._backoff(attempt))
                log.info("action=llm_retry stage=%s attempt=%d delay_s=%.2f %s", prompt.stage, attempt, delay, exc)
                await self._limiter.cool_down.begin(delay)
                continue
            except RetryableError as exc:
                attempt += 1
                if attempt > limits.max_llm_retries:
                    raise
                delay = self._delay(exc, attempt)
                log.info("action=llm_retry stage=%s attempt=%d delay_s=%.2f %s", prompt.stage, attempt, delay, exc)
            await asyncio.sleep(delay)

    async def _paid(
        self, prompt: Prompt, max_tokens: int, history: Sequence[Turn], spend: Spend, rank: int
    ) -> RawAnswer:
        """One call, reserved from the job's budget first where it has one."""
        if spend.budget is None:
            return await self._in_line(prompt, max_tokens, history, spend, rank)
        prices, model = self._settings.llm.prices, self._client.model
        worst = worst_case_nano(prices, model, prompt, max_tokens=max_tokens, history=history)
        return await spend.budget.pay(
            worst, spend, lambda own: self._in_line(prompt, max_tokens, history, own, rank), rank=rank
        )

    async def _in_line(
        self, prompt: Prompt, max_tokens: int, history: Sequence[Turn], spend: Spend, rank: int
    ) -> RawAnswer:
        """One call, at its turn under the rate limits and over the next free connection."""
        tokens = self._estimate.tokens(prompt, max_tokens)
        while True:
            began = time.perf_counter()
            async with self._limiter.slot(tokens) as slot:
                self._profiler.record("llm.rate_wait", time.perf_counter() - began)
                async with self._pool.connection(rank=rank):
                    # A cool-down may have begun in line for the connection: then back, and give the slot away.
                    if not self._limiter.is_cooling:
                        self._limiter.sent(slot)
                        return await self._once(prompt, max_tokens, history, spend, slot)

    async def _once(
        self, prompt: Prompt, max_tokens: int, history: Sequence[Turn], spend: Spend, slot: Slot
    ) -> RawAnswer:
        began, sent_at = time.perf_counter(), time.monotonic()
        try:
            raw = await self._client.complete(prompt, max_tokens=max_tokens, spend=spend, history=history)
        except AnsweredRefusalError as exc:
            self._settle(prompt, exc.answer, slot)
            self._charge(spend, exc.answer)
            raise
        except RateLimitedError:
            slot.settle(0)
            self._pool.refused(sent_at=sent_at)
            raise
        self._profiler.record("llm.call", time.perf_counter() - began)
        self._settle(prompt, raw, slot)
        self._charge(spend, raw)
        if raw.cool_down_seconds:
            await self._limiter.cool_down.begin(raw.cool_down_seconds)
        return raw

    def _settle(self, prompt: Prompt, raw: RawAnswer, slot: Slot) -> None:
        """An answer came: what was reserved for it becomes what it was."""
        self._answers += 1
        self._pool.answered()
        self._estimate.learn(prompt.stage, raw.completion_tokens)
        slot.settle(raw.prompt_tokens + raw.completion_tokens)

    def _charge(self, spend: Spend, raw: RawAnswer) -> None:
        cost = cost_usd(
            self._settings.llm.prices,
            asked=self._client.model,
            answered=raw.model,
            prompt_tokens=raw.prompt_tokens,
            completion_tokens=raw.completion_tokens,
        )
        spend.add_tokens(raw.prompt_tokens, raw.completion_tokens, cost)

    def _delay(self, exc: RetryableError, attempt: int) -> float:
        asked = exc.retry_after_seconds if isinstance(exc, RateLimitedError) else None
        if asked is None:
            return self._backoff(attempt)
        # What the server asks for is a minimum; a little jitter keeps its clients from coming back as one.
        return asked + random.random() * min(1.0, asked / 10 + 0.05)  # noqa: S311

    def _backoff(self, attempt: int) -> float:
        limits = self._settings.performance_optimization
        draw = random.random()  # noqa: S311  # jitter
        return backoff_seconds(attempt, base=limits.retry_base_delay, most=limits.retry_max_delay, draw=draw)
