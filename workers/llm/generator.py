"""From a prompt to a validated completion, paid for at most once.

    cache -> single flight (process, then all) -> pool (route, rate limit, line) -> client -> validation -> cache

The generator decides what an unusable answer means: ask again with the mistake named or with more tokens, or give up.
"""

import logging
import time
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from config.settings import Settings
from tasks.errors import BudgetExceededError, InvalidAnswerError, JobStoppedError, PermanentError, RejectedAnswerError
from tasks.prices.rates import TokenCounts
from tasks.texts import count
from workers.llm.batches.desk import BatchDesk
from workers.llm.batches.questions import IN_CACHE, LATE, BatchStore
from workers.llm.cache.tiers import CachedCompletion, Lookup, PersistentLLMCache
from workers.llm.caller import Caller, Request
from workers.llm.completion import Completion, StageStats
from workers.llm.endpoints.answers import UnclosedAnswerError, salvaged, split_reasoning
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.endpoints.prompt import Prompt, sampling_of
from workers.llm.endpoints.registry import model_for
from workers.llm.endpoints.reply import AnswerFormat, RawAnswer, read_reply
from workers.llm.endpoints.request import Turn
from workers.llm.flights.local import SingleFlight
from workers.llm.flights.outcomes import TruncatedError, decode_outcome, encode_error, encode_value
from workers.llm.flights.shared import Claimed, Flight, SharedFlights
from workers.observe.profiler import PerformanceProfiler

log = logging.getLogger("themes.llm")

#: An answer that was cut off is asked for again with this many times the tokens.
MORE_TOKENS: Final = 2
#: Characters of an unusable answer that the model is shown again.
TURN_CHARACTERS: Final = 8_000
#: Stands for all stages of a model that thinks before it answers.
THINKING: Final = "thinking"
#: The sandbox's model name. What it answered for another model's name is not that model's answer.
SANDBOX: Final = "sandbox"

#: Part of the lookups below which they are not worth a round trip of their own.
FEW_HITS: Final = 0.2
#: Weight of the newest lookup: the last twenty or so decide.
NEWEST: Final = 0.05


class _Question(msgspec.Struct, eq=False):
    prompt: Prompt
    key: str
    lookup: Lookup
    model: str
    stage_stats: StageStats
    request_priority: int
    is_fresh: bool

    @property
    def flight(self) -> str:
        return f"{self.key}-fresh" if self.is_fresh else self.key


class FocusedLLMGenerator:
    """Answers prompts for all destinations of one worker process. Without `shared` it asks for itself alone."""

    def __init__(
        self,
        *,
        pool: LLMConnectionPool,
        cache: PersistentLLMCache,
        profiler: PerformanceProfiler,
        settings: Settings,
        shared: SharedFlights | None = None,
        batches: BatchStore | None = None,
    ) -> None:
        self._caller = Caller(pool, settings=settings, profiler=profiler)
        self._sampling = sampling_of(settings.llm)
        self._cache = cache
        self._profiler = profiler
        self._settings = settings
        self._flights: SingleFlight[Completion] = SingleFlight()
        self._shared = shared
        self._desk: BatchDesk | None = None
        if batches is not None:
            is_kept = cache.state != "off"
            self._desk = BatchDesk(
                batches, pool.routes, settings, self._caller.billing, is_kept=is_kept, ttl_ms=cache.ttl_ms
            )
        #: Part of the latest lookups in Redis that found something.
        self._found_lately = 1.0
        #: Tokens beyond what a prompt allows that a model has needed, by model and stage.
        self._needed: dict[tuple[str, str], int] = {}

    def __repr__(self) -> str:
        return f"<FocusedLLMGenerator {self._caller!r} {self._flights!r} {self._shared!r}>"

    async def answer(
        self, prompt: Prompt, *, stage_stats: StageStats, request_priority: int, use_cache: bool = True
    ) -> Completion:
        """The completion of a prompt, from the cache, from an equal prompt in flight, or from the LLM.

        Args:
            prompt: what is asked.
            stage_stats: is charged for what this prompt costs, also when it fails.
            request_priority: of the destination; the lowest number gets the next free connection.
            use_cache: False asks the LLM even where the answer is known; the new answer is stored.

        Raises:
            PermanentError: this prompt has no usable answer.
            RetryableError: it had none within `max_llm_retries` tries.
            JobStoppedError: its job is to stop; `BudgetExceededError`: it may spend no more.
        """
        model = model_for(self._settings.llm, prompt.stage, prompt.model)
        key = prompt.key(model=model, sampling=self._sampling)
        lookup = self._cache.lookup(key, is_valid=prompt.schema.is_valid, stats=stage_stats.cache)
        question = _Question(prompt, key, lookup, model, stage_stats, request_priority, is_fresh=not use_cache)
        if self._desk is not None and self._desk.takes(model, stage_stats.spend.terms):
            return await self._batched(question, self._desk)
        if use_cache and (known := await self._look(question)):
            return self._hit(question, known)
        return await self._called(question)

    async def _called(self, question: _Question) -> Completion:
        completion, joined = await self._together(question)
        if joined or completion.source == "coalesced":
            question.lookup.coalesced()
            return replace(completion, source="coalesced")
        return completion

    async def _batched(self, question: _Question, desk: BatchDesk) -> Completion:
        """The completion out of the cache, or of what a batch has answered; what it has not is asked otherwise.

        Raises `ParkedError`: it waits for a batch.
        """
        lookup, spend = question.lookup, question.stage_stats.spend
        payer = f"{spend.terms.job_id} {spend.terms.payer}"
        if not question.is_fresh and (known := await lookup.find(own=payer)):
            return self._own_or_hit(question, known, payer)
        place = desk.place(question.flight, question.key, spend, is_fresh=question.is_fresh)
        limit = self._room(question.prompt, question.model)
        found = await desk.answer(place, question.prompt, question.model, max_tokens=limit)
        if found == IN_CACHE and (known := await lookup.find(own=payer)):
            if question.is_fresh:
                return Completion.of(known, "called", question.key)
            return self._own_or_hit(question, known, payer)
        try:
            made = None if found in {LATE, IN_CACHE} else self._made_of(question, found, payer)
            if made is None:
                completion = await self._called(question)
                await desk.keep(place, b"")
                return completion
        except PermanentError as exc:
            # Of this question nothing more is asked, however often its destination comes back to it.
            await desk.fail(place, encode_error(exc))
            raise
        lookup.missed()
        is_kept = _is_kept(made.model, question.model)
        if is_kept:
            stored = lookup.encode(made)
            await desk.keep(place, stored)
            lookup.remember(stored)
        return Completion.of(made, "called", question.key, is_kept=is_kept)

    def _own_or_hit(self, question: _Question, known: CachedCompletion, payer: str) -> Completion:
        """What the cache has: a hit, unless it is what this very destination has bought in a batch."""
        return Completion.of(known, "called", question.key) if known.payer == payer else self._hit(question, known)

    def _made_of(self, question: _Question, body: bytes, payer: str) -> CachedCompletion | None:
        """The completion in an answer of a batch; None where that is of no use. Raises as `read_reply`."""
        raw = read_reply(body, model=question.model, style=AnswerFormat.JSON_SCHEMA, prompt_characters=0)
        try:
            with self._profiler.span("llm.validate"):
                value = question.prompt.schema.read(*raw.texts, thoughts=() if raw.is_truncated else raw.thoughts)
        except InvalidAnswerError as exc:
            log.info("action=batch_answer stage=%s is asked otherwise: %s", question.prompt.stage, exc)
            return None
        return CachedCompletion(value, raw.model, raw.tokens.prompt, raw.tokens.completion, payer)

    async def _together(self, question: _Question) -> tuple[Completion, bool]:
        """The answer to all equal questions of this process, and whether another caller asked."""
        budget, token = question.stage_stats.spend.budget, question.stage_stats.token
        while True:
            began = time.perf_counter()
            try:
                completion, joined = await self._flights.run(question.flight, lambda: self._ask_once(question))
            except BudgetExceededError as exc:
                # Another job's budget: a caller that only waited for its answer asks again.
                if budget is not None and budget.job_id == exc.job_id:
                    raise
            except JobStoppedError as exc:
                if token.cancellation.job_id == exc.job_id:
                    raise
            else:
                if joined:
                    self._profiler.record("flight.wait", time.perf_counter() - began)
                return completion, joined

    async def _look(self, question: _Question) -> CachedCompletion | None:
        """What the cache holds. Where little was found lately, the step that claims the flight looks into Redis."""
        if self._shared is not None and self._found_lately < FEW_HITS:
            return question.lookup.in_memory()
        with self._profiler.span("cache.get"):
            known = await question.lookup.find()
        self._found(known is not None)
        return known

    def _found(self, is_hit: bool) -> None:  # noqa: FBT001
        self._found_lately += NEWEST * (is_hit - self._found_lately)

    def _hit(self, question: _Question, known: CachedCompletion) -> Completion:
        counts = TokenCounts(known.prompt_tokens, known.completion_tokens)
        question.lookup.saved(known, self._caller.billing.prices.usd(question.model, counts, known.model))
        return Completion.of(known, "cached", question.key)

    async def _ask_once(self, question: _Question) -> Completion:
        """Ask, unless another process does: then its answer, or its error, is ours."""
        if self._shared is None:
            return await self._ask(question, Flight())
        began = time.perf_counter()
        async with self._shared.flight(question.flight, question.key, fresh=question.is_fresh) as (claimed, ours):
            self._profiler.record("flight.wait" if claimed.waited else "flight.claim", time.perf_counter() - began)
            if claimed.end == "own":
                self._found(is_hit=False)
                try:
                    return await self._ask(question, ours, is_shared=True)
                except PermanentError as exc:
                    ours.outcome = encode_error(exc)
                    raise
            if claimed.end != "alone" and (completion := self._told(question, claimed)):
                return completion
        return await self._ask(question, Flight())

    def _told(self, question: _Question, claimed: Claimed) -> Completion | None:
        """What another process has stored, or left for waiters; None when it is of no use."""
        if claimed.end == "value" and not claimed.waited:
            known = question.lookup.accept(claimed.payload)
            self._found(is_hit=True)
            return self._hit(question, known) if known else None
        stored = claimed.payload if claimed.end == "value" else decode_outcome(claimed.payload)
        known = question.lookup.decode(stored)
        if known is None:
            return None
        is_kept = _is_kept(known.model, question.model)
        if is_kept:
            question.lookup.keep(stored)
        question.lookup.missed()
        return Completion.of(known, "coalesced", question.key, is_kept=is_kept)

    async def _ask(self, question: _Question, flight: Flight, *, is_shared: bool = False) -> Completion:
        """Ask the LLM and store the answer: with the flight's end where it is shared, else at once."""
        lookup = question.lookup
        if not question.is_fresh:
            lookup.missed()
        value, raw = await self._usable(self._request(question))
        completion = CachedCompletion(value, raw.model, raw.tokens.prompt, raw.tokens.completion)
        is_kept = _is_kept(raw.model, question.model)
        with self._profiler.span("cache.put"):
            if is_shared:
                stored = lookup.encode(completion)
                if is_kept:
                    flight.stored = stored
                    lookup.remember(stored)
                if question.is_fresh or not is_kept:
                    flight.outcome = encode_value(stored)
            elif is_kept:
                await lookup.put(completion)
        return Completion.of(completion, "called", question.key, is_kept=is_kept)

    def _request(self, question: _Question) -> Request:
        """The question as the caller asks it; what belongs into a batch and is in none goes at another tier."""
        spend, llm = question.stage_stats.spend, self._settings.llm
        is_batch = self._desk is not None and self._desk.takes(question.model, spend.terms)
        return Request(
            question.prompt,
            question.model,
            spend,
            question.request_priority,
            max_tokens=self._room(question.prompt, question.model),
            token=question.stage_stats.token,
            tier=llm.batch_stragglers if is_batch else spend.terms.tier,
        )

    async def _usable(self, request: Request) -> tuple[Any, RawAnswer]:
        """Ask until the answer is usable: again with more tokens where it was cut off, once more for a mistake."""
        prompt, first_limit = request.prompt, request.max_tokens
        is_again = False
        while True:
            try:
                raw = await self._caller.answer(request)
                with self._profiler.span("llm.validate"):
                    value = prompt.schema.read(*raw.texts, thoughts=() if raw.is_truncated else raw.thoughts)
            except RejectedAnswerError as exc:
                if is_again:
                    raise InvalidAnswerError(f"{exc}, also when asked again") from exc
                is_again = True
            except InvalidAnswerError as exc:
                if raw.is_truncated or isinstance(exc, UnclosedAnswerError):
                    self._allow_more(request, raw, first_limit)
                    continue
                if is_again:
                    refused = InvalidAnswerError(f"{exc}, also when asked again")
                    refused.answer = raw.text[:TURN_CHARACTERS]
                    raise refused from exc
                is_again = True
                self._judge(request, raw, valid=False)
                request.history = (Turn(answer=raw.text[:TURN_CHARACTERS], problem=str(exc)),)
            else:
                if not request.history:
                    self._judge(request, raw, valid=True)
                if request.max_tokens > first_limit:
                    self._needed[request.model, prompt.stage] = request.max_tokens - prompt.max_tokens
                return value, raw

    def _room(self, prompt: Prompt, model: str) -> int:
        """Tokens that a completion may have: what the prompt allows, and what the model has needed beyond that."""
        more = max(self._needed.get((model, prompt.stage), 0), self._needed.get((model, THINKING), 0))
        return min(prompt.max_tokens + more, max(prompt.max_tokens, self._settings.llm.max_completion_tokens))

    def _allow_more(self, request: Request, raw: RawAnswer, first_limit: int) -> None:
        """Let an answer that was cut off have more tokens: once, or as often as thoughts have used them up.

        A model that thinks does so for every stage: its other prompts get the same room. Raises `TruncatedError`.
        """
        most = self._settings.llm.max_completion_tokens
        thinks = bool(raw.thoughts) or not split_reasoning(raw.text)[0].strip()
        thinking = request.model, THINKING
        has_more = request.max_tokens > first_limit
        if raw.limit_tokens < request.max_tokens or raw.limit_tokens >= most or (has_more and not thinks):
            self._needed.pop(thinking, None)
            raise TruncatedError(f"cut off at {count(raw.limit_tokens, 'token')}", salvaged(raw.text))
        request.max_tokens = min(most, request.max_tokens * MORE_TOKENS)
        if thinks:
            self._needed[thinking] = max(self._needed.get(thinking, 0), request.max_tokens - request.prompt.max_tokens)

    @staticmethod
    def _judge(request: Request, raw: RawAnswer, *, valid: bool) -> None:
        if request.route is not None:
            request.route.client.judge(raw, valid=valid)


def _is_kept(answered: str, asked: str) -> bool:
    """Whether an answer may be cached as the model's that was asked."""
    return answered != SANDBOX or asked == SANDBOX
