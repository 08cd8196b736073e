"""Where prompts go whose answers are bought in batches: to an answer that is there, or to wait for one.

Questions of one chunk that come together are one step of the store.
"""

import asyncio
import hashlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

import msgspec

from config.endpoints import BATCH
from config.settings import Settings
from tasks.errors import BudgetExceededError, JobPausedError, ParkedError
from workers.llm.batches.questions import (
    FAILED,
    FULL,
    IN_CACHE,
    LINE_BYTES,
    SLICE,
    Ask,
    BatchStore,
    Form,
    Kept,
    Question,
    split_shelf,
)
from workers.llm.billing import Billing
from workers.llm.budget import worst_case_nano
from workers.llm.cache.completions import StoreAwayError
from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.registry import limits_of
from workers.llm.endpoints.route import Route
from workers.llm.flights.outcomes import decode_outcome
from workers.llm.spend import Spend, Terms
from workers.process.outage import Outage

log = logging.getLogger("themes.batches")

T = TypeVar("T")

#: Seconds after which a question is asked again that there was no room for.
ROOM_SECONDS: Final = 1.0
#: Seconds between two tries while the store is away.
AWAY_SECONDS: Final = 0.5
#: Forms that are remembered.
MAX_FORMS: Final = 2_000


class Place(msgspec.Struct, frozen=True):
    """Where a question waits: its key, who asks on which terms, and whether its answer is to be a new one."""

    key: str
    cache_key: str
    terms: Terms
    has_budget: bool
    is_fresh: bool

    @property
    def scope(self) -> bytes:
        """The attempt for which a failure holds."""
        return f"{self.terms.job_id}:{self.terms.payer.rpartition(' ')[2]}".encode()


class BatchDesk:
    """One process's way to batches. `is_kept` tells whether completions outlive the process: for `ttl_ms`."""

    def __init__(
        self,
        store: BatchStore,
        routes: Sequence[Route],
        settings: Settings,
        billing: Billing,
        *,
        is_kept: bool,
        ttl_ms: int,
    ) -> None:
        self.store = store
        self._settings = settings
        self._billing = billing
        self._is_kept = is_kept
        self._ttl_ms = ttl_ms
        self._shelves = shelves_of(routes, settings)
        #: Models whose prompts are bought in batches where their job says nothing.
        self._usual = {
            model for model, shelf in self._shelves.items() if _tier_of(split_shelf(shelf)[0], settings) == BATCH
        }
        self._forms: dict[str, Form] = {}
        self._asked: list[tuple[Ask, Form, asyncio.Future[bytes | None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._kept: list[Kept] = []
        self._outage = Outage(
            log,
            lost="action=batches_away questions wait: %s",
            back="action=batches_back questions go on",
        )
        self._keeping: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<BatchDesk shelves={self._shelves} {self.store!r}>"

    def takes(self, model: str, terms: Terms) -> bool:
        """Whether a prompt for this model is bought in batches."""
        return terms.tier == BATCH or (not terms.tier and model in self._usual)

    @staticmethod
    def place(key: str, cache_key: str, spend: Spend, *, is_fresh: bool) -> "Place":
        """Where a question waits, by its key in the cache; a fresh answer is its job's alone."""
        own = f"{key}-{spend.terms.job_id}" if is_fresh else key
        return Place(own, cache_key, spend.terms, spend.budget is not None, is_fresh)

    async def answer(self, place: "Place", prompt: Prompt, model: str, *, max_tokens: int) -> bytes:
        """The body of an answer that a batch has brought, or `LATE`, or `IN_CACHE`.

        Raises:
            ParkedError: it waits for a batch.
            PermanentError: this attempt has found out that it has no usable answer.
            JobPausedError: batches cannot be used here, or the job's budget cannot be kept.
        """
        terms = place.terms
        if not self._is_kept:
            said = "the tier batch needs performance_optimization.enable_persistent_cache"
            raise JobPausedError(said, job_id=terms.job_id, reason="batch")
        form = self._form(prompt)
        question = Question(
            form.digest, prompt.stage, prompt.data, max_tokens,
            self._worst(prompt, model, place, max_tokens),
            LINE_BYTES + len(prompt.data) + len(prompt.instructions) + len(prompt.system) + len(prompt.schema.text),
        )  # fmt: skip
        is_late = terms.deadline_at is not None and time.time() >= terms.deadline_at
        ask = Ask(
            place.key, "" if place.is_fresh else place.cache_key, self._shelves[model], question, terms.job_id,
            terms.chunk_id, terms.payer, is_late=is_late,
        )  # fmt: skip
        found = await self._known(ask, form)
        if found is not None and found.startswith(FAILED):
            scope, _, error = found[len(FAILED) :].partition(b" ")
            if scope == place.scope:
                decode_outcome(error)
            await self._keep(Kept(place.key))
            found = await self._known(ask, form)
        if found is None:
            raise ParkedError("its questions wait for a batch", job_id=terms.job_id)
        return found

    async def keep(self, place: "Place", stored: bytes) -> None:
        """Put a completion into the cache in place of its answer; empty: the cache has it."""
        await self._keep(Kept(place.key, place.cache_key, stored, IN_CACHE if place.is_fresh else b""))

    async def fail(self, place: "Place", error: bytes) -> None:
        """Remember for this attempt that the question has no usable answer."""
        await self._keep(Kept(place.key, mark=FAILED + place.scope + b" " + error))

    async def _keep(self, one: Kept) -> None:
        """Those that come together are one step of the store."""
        self._kept.append(one)
        if self._keeping is None or self._keeping.done():
            self._keeping = asyncio.create_task(self._keep_all(), name="batch answers")
        await asyncio.shield(self._keeping)

    async def _keep_all(self) -> None:
        while self._kept:
            kept, self._kept = self._kept[:SLICE], self._kept[SLICE:]
            await self._insist(partial(self.store.keep, kept, ttl_ms=self._ttl_ms))

    def _worst(self, prompt: Prompt, model: str, place: Place, max_tokens: int) -> int:
        """The most that the question can cost, in nano-dollars; its job may be given a budget while it waits."""
        worst = worst_case_nano(self._billing.prices, model, prompt, max_tokens=max_tokens)
        if worst is None and not place.has_budget:
            return 0
        if worst is None:
            raise BudgetExceededError(
                "the job has a budget, but this worker's model has no price: add it to llm.prices",
                job_id=place.terms.job_id,
                reason="price",
            )
        return math.ceil(worst * self._billing.tiers.factor(BATCH))

    def _form(self, prompt: Prompt) -> Form:
        """What the prompt shares with others of its version, and of its number of themes."""
        known = f"{prompt.version} {prompt.schema.name} {hash(prompt.schema.text)}"
        if known not in self._forms:
            if len(self._forms) >= MAX_FORMS:
                self._forms.clear()
            parts = [prompt.system, prompt.instructions, prompt.schema.name, prompt.schema.text]
            digest = hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:32]
            schema = dict(prompt.schema.document)
            self._forms[known] = Form(digest, prompt.system, prompt.instructions, prompt.schema.name, schema)
        return self._forms[known]

    async def _known(self, ask: Ask, form: Form) -> bytes | None:
        """What is known of a question, once there is room for it."""
        while True:
            found = await self._together(ask, form)
            if found != FULL:
                return found
            await asyncio.sleep(ROOM_SECONDS)

    async def _together(self, ask: Ask, form: Form) -> bytes | None:
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._asked.append((ask, form, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve(), name="batch questions")
        return await future

    async def _serve(self) -> None:
        while self._asked:
            asked, self._asked = self._asked, []
            chunks: dict[tuple[str, str], list[tuple[Ask, Form, asyncio.Future[bytes | None]]]] = {}
            for one in asked:
                chunks.setdefault((one[0].job_id, one[0].chunk_id), []).append(one)
            await asyncio.gather(*(self._ask(some) for some in chunks.values()))

    async def _ask(self, some: Sequence[tuple[Ask, Form, asyncio.Future[bytes | None]]]) -> None:
        most = self._settings.llm.batch_queue_requests
        asks, forms = [ask for ask, _, _ in some], [form for _, form, _ in some]
        try:
            found = await self._insist(lambda: self.store.ask(asks, forms, most=most))
        except Exception as exc:  # noqa: BLE001  # handed to those who asked
            for _, _, future in some:
                if not future.done():
                    future.set_exception(exc)
            return
        for (_, _, future), answer in zip(some, found, strict=True):
            if not future.done():
                future.set_result(answer)

    async def _insist(self, step: Callable[[], Awaitable[T]]) -> T:
        """Take a step of the store, however long it is away: nothing may be asked twice, and nothing lost."""
        while True:
            try:
                done = await step()
            except StoreAwayError as exc:
                self._outage.begin(exc)
                await asyncio.sleep(AWAY_SECONDS)
            else:
                self._outage.end()
                return done


def shelves_of(routes: Sequence[Route], settings: Settings) -> Mapping[str, str]:
    """Where the questions for each model wait: at an endpoint whose tier is batch, else at the first that serves it."""
    found: dict[str, str] = {}
    for route in sorted(routes, key=lambda one: _tier_of(one.name, settings) != BATCH):
        found.setdefault(route.model, f"{route.name}/{route.model}")
    return found


def _tier_of(endpoint: str, settings: Settings) -> str:
    return limits_of(settings.llm, endpoint).tier
