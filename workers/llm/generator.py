"""From a prompt to a validated completion, paid for at most once.

    cache -> single flight -> connection pool (route, rate limit, line) -> client -> validation -> cache

The generator decides what a failed or unusable answer means: wait and ask again, ask again with the mistake named, ask
again with more tokens, or give up with an error that says why.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from config.settings import Settings
from tasks.errors import InvalidAnswerError, TruncatedAnswerError
from tasks.messages import Usage
from workers.llm.answers import salvaged
from workers.llm.cache import CachedCompletion, PersistentLLMCache
from workers.llm.caller import Caller, Request
from workers.llm.client import RawAnswer, Spend, Turn
from workers.llm.endpoints import model_for
from workers.llm.pool import LLMConnectionPool
from workers.llm.prompt import Prompt, sampling_of
from workers.llm.single_flight import SingleFlight
from workers.observe.profiler import PerformanceProfiler

#: An answer that was cut off is asked for once more with this many times the tokens.
MORE_TOKENS: Final = 2
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
    """What one destination's stage has cost and saved; filled while the stage runs, whatever its end."""

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


class FocusedLLMGenerator:
    """Answers prompts for all destinations of one worker process."""

    def __init__(
        self,
        *,
        pool: LLMConnectionPool,
        cache: PersistentLLMCache,
        profiler: PerformanceProfiler,
        settings: Settings,
    ) -> None:
        self._caller = Caller(pool, settings=settings, profiler=profiler)
        self._sampling = sampling_of(settings.llm)
        self._cache = cache
        self._profiler = profiler
        self._settings = settings
        self._flights: SingleFlight[Completion] = SingleFlight()

    def __repr__(self) -> str:
        return f"<FocusedLLMGenerator {self._caller!r} {self._flights!r}>"

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
        """
        model = model_for(self._settings.llm, prompt.stage, prompt.model)
        key = prompt.key(model=model, sampling=self._sampling)
        if use_cache:
            with self._profiler.span("cache.get"):
                known = await self._cache.get(key)
            # A user may have shortened the schema's reach by hand: what is served is valid now.
            if known is not None and prompt.schema.is_valid(known.value):
                account.cache_hits += 1
                return Completion(value=known.value, model=known.model, source="cached")
        flight_key = key if use_cache else f"{key}-fresh"
        completion, joined = await self._flights.run(
            flight_key, lambda: self._ask(prompt, key, model, account.spend, rank)
        )
        if joined:
            account.coalesced += 1
            return Completion(value=completion.value, model=completion.model, source="coalesced")
        return completion

    async def _ask(self, prompt: Prompt, key: str, model: str, spend: Spend, rank: int) -> Completion:
        request = Request(prompt, model, spend, rank, prompt.max_tokens)
        value, raw = await self._usable(request)
        if raw.model != SANDBOX or model == SANDBOX:
            stored = CachedCompletion(
                value=value,
                model=raw.model,
                prompt_tokens=raw.prompt_tokens,
                completion_tokens=raw.completion_tokens,
            )
            with self._profiler.span("cache.put"):
                await self._cache.put(key, stored)
        return Completion(value=value, model=raw.model, source="called")

    async def _usable(self, request: Request) -> tuple[Any, RawAnswer]:
        """Ask until the answer is usable: at most once more for more tokens, and once more for a mistake."""
        prompt = request.prompt
        while True:
            raw = await self._caller.answer(request)
            if raw.is_truncated:
                if request.max_tokens > prompt.max_tokens:
                    raise TruncatedError(f"cut off at {request.max_tokens} tokens, twice", salvaged(raw.text))
                request.max_tokens *= MORE_TOKENS
                continue
            try:
                with self._profiler.span("llm.validate"):
                    value = prompt.schema.read(raw.text)
            except InvalidAnswerError as exc:
                if request.history:
                    raise InvalidAnswerError(f"{exc}, also when asked again") from exc
                self._judge(request, raw, valid=False)
                request.history = (Turn(answer=raw.text, problem=str(exc)),)
            else:
                if not request.history:
                    self._judge(request, raw, valid=True)
                return value, raw

    @staticmethod
    def _judge(request: Request, raw: RawAnswer, *, valid: bool) -> None:
        if request.route is not None:
            request.route.client.judge(raw, valid=valid)
