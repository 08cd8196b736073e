"""A job's budget, kept by all workers together: a call is paid for before it is made.

    reserve an upper bound -> make the call -> settle what it really cost

Redis decides in one script with what is spent and reserved everywhere: what fits is granted; what would fit without the
calls under way waits, because most of their reservations come back; what does not fit even then ends in
`BudgetExceededError`. What is uncertain counts as spent: a call that hung or broke after it was sent may have been
charged, and so may the calls of a process that died.

A process reports totals, never differences: a script that redis-py repeats, because the reply was lost, changes
nothing. While Redis is away calls wait. Without Redis the book is a file (`workers.local.state_file`), with the same
rules.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from redis import RedisError
from redis.asyncio import Redis

from config.settings import Settings
from tasks import keys
from tasks.errors import BadRequestError, BudgetExceededError, NoCapacityError, RateLimitedError, RetryableError
from tasks.jobs.budget import NANO, dollars
from tasks.lua import lua
from tasks.prices.table import PriceTable
from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.request import Turn
from workers.llm.funds import BY_JOB, FUNDS, GRANTED, UNREADABLE, Refused, Standing, limits_json, unreadable_team
from workers.llm.spend import Spend
from workers.process.outage import Outage
from workers.process.retry import wait_at_most
from workers.process.shutdown import end_tasks

log = logging.getLogger("themes.budget")

T = TypeVar("T")

#: Seconds between two questions of a call that waits for those of other processes.
POLL_SECONDS: Final = 0.15
#: Seconds between two tries while Redis does not answer.
REDIS_PAUSE_SECONDS: Final = 0.5
#: Seconds that a stopping process may take to tell what it has spent.
CLOSE_SECONDS: Final = 2.0
#: Bytes that a token has at least, in the mean over a prompt. English has about 4, JSON's punctuation 2 to 3, scripts
#: with 3 bytes a character at most one and a half tokens a character. Only a prompt made of rare symbols has fewer.
BYTES_PER_TOKEN: Final = 2
#: Bytes that the client and the provider put around a prompt: roles, names, the words before a schema.
WRAPPING_BYTES: Final = 512


def worst_case_nano(
    prices: PriceTable, model: str, prompt: Prompt, *, max_tokens: int, history: Sequence[Turn] = ()
) -> int | None:
    """The most that one call can cost, in nano-dollars; None where the model has no price.

    The schema counts once, as the response format or as text, and once more for every earlier turn.
    """
    schema = prompt.schema.text
    texts = [prompt.system, prompt.instructions, prompt.data, schema]
    for turn in history:
        texts += [turn.answer, turn.problem, schema]
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) + WRAPPING_BYTES * (1 + len(history))
    return prices.most_nano(model, -(-size // BYTES_PER_TOKEN), max_tokens)


def settled_nano(call: Spend, error: BaseException | None, *, reserved: int) -> int:
    """What a call has cost, in nano-dollars.

    Nothing where the server did not get it or refused it; what was counted where an answer came; else all that was
    reserved, as it may have been charged. The tokens of a cancelled call are an estimate, and no answer.
    """
    if call.calls == 0 or isinstance(error, RateLimitedError | NoCapacityError | BadRequestError):
        return 0
    has_tokens = call.prompt_tokens or call.completion_tokens
    is_answered = error is None or (has_tokens and not isinstance(error, asyncio.CancelledError))
    if is_answered and call.cost_usd is not None:
        return math.ceil(round(call.cost_usd * NANO, 3))
    return reserved


@dataclass(order=True, slots=True)
class _Waiter:
    request_priority: int
    number: int
    nano: int
    future: asyncio.Future[None]


class BookAwayError(RetryableError):
    """The budget's books cannot be had now: calls wait."""


class BookUnreadableError(BookAwayError):
    """The books of a job's team are none: calls are refused, and what is spent waits to be told."""


#: How a budget stands, and a decision for each amount.
Exchanged = tuple[Standing, list[int]]


class BudgetBook(Protocol):
    """Where a job's limit stands, and what is spent and reserved."""

    async def exchange(self, spent: int, reserved: int, amounts: Sequence[int]) -> Exchanged | None:
        """Report this process's totals, and ask whether it may reserve `amounts` more; all in nano-dollars.

        Returns how the budget stands, and a decision for each amount: 1 granted, 0 wait, below 0 never (`funds`); None
        where there is no such budget any more. Raises `BookAwayError`: nothing was granted.
        """


class RedisBook:
    """A job's budget in Redis, shared by all workers, and with it its team's. `limits`: `funds.limits_json`."""

    def __init__(self, redis: Redis, job_id: str, *, dead_after_seconds: float, limits: bytes = b"{}") -> None:
        self._job_id, self._key = job_id, keys.budget(job_id)
        self._limits = limits
        self._script = redis.register_script(FUNDS + lua(__file__, "exchange"))
        #: Unlike that of any other process.
        self.process = uuid.uuid4().hex[:12]
        self._dead_after_ms = int(dead_after_seconds * 1000)

    def __repr__(self) -> str:
        return f"<RedisBook {self._key}>"

    async def exchange(self, spent: int, reserved: int, amounts: Sequence[int]) -> Exchanged | None:
        arguments: list[str | bytes | int] = [
            self._job_id, self.process, spent, reserved, self._dead_after_ms, self._limits, *amounts,
        ]  # fmt: skip
        try:
            answer: Any = await self._script(keys=[self._key], args=arguments)
        except (RedisError, OSError) as exc:
            if str(exc).startswith(UNREADABLE):
                raise BookUnreadableError(str(exc).removeprefix(UNREADABLE)) from exc
            raise BookAwayError(f"Redis does not answer ({exc})") from exc
        return (Standing.of(answer), [int(one) for one in answer[len(Standing._fields) :]]) if answer else None


def decisions(limit: int, *, certain: int, under_way: int, amounts: Sequence[int]) -> list[int]:
    """What one process alone decides, as `lua/exchange.lua` does for all: 1 granted, 0 wait, -1 never."""
    decided, waits = [], False
    for amount in amounts:
        if certain + amount > limit:
            decided.append(-1)
        elif waits or certain + under_way + amount > limit:
            waits = True
            decided.append(0)
        else:
            under_way += amount
            decided.append(1)
    return decided


class JobBudget:
    """One job's budget as this process sees it. It lives as long as the process: its book is told totals."""

    def __init__(self, book: BudgetBook, job_id: str, *, touch_seconds: float) -> None:
        self.job_id = job_id
        self._book = book
        self._touch_seconds = touch_seconds
        self._spent = 0
        self._reserved = 0
        #: Spent and reserved as the book has them; None while that is unknown, as its answer is not there.
        self._told: tuple[int, int] | None = (0, 0)
        self._waiting: list[_Waiter] = []
        self._order = itertools.count()
        self._news = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None
        self._outage = Outage(
            log,
            lost="action=budget_wait job_id=%s calls wait: %s",
            back="action=budget_back job_id=%s calls go on",
        )

    def __repr__(self) -> str:
        spent, reserved = dollars(self._spent / NANO), dollars(self._reserved / NANO)
        return f"<JobBudget {self.job_id} spent={spent} reserved={reserved} waiting={len(self._waiting)}>"

    async def pay(
        self, worst_nano: int | None, spend: Spend, call: Callable[[Spend], Awaitable[T]], *, request_priority: int
    ) -> T:
        """Make a call that costs `worst_nano` at most, when the budget allows it; a lower number is served first.

        The call fills a `Spend` of its own, which is added to `spend` whatever its end.

        Raises:
            BudgetExceededError: the budget does not allow it; the call was not made.
        """
        if worst_nano is None:
            raise BudgetExceededError(
                "the job has a budget, but this worker's model has no price: add it to llm.prices",
                job_id=self.job_id,
                reason="price",
            )
        await self._granted(worst_nano, request_priority)
        own = Spend(recording=spend.recording)
        error: BaseException | None = None
        try:
            return await call(own)
        except BaseException as exc:
            error = exc
            raise
        finally:
            self._settle(worst_nano, settled_nano(own, error, reserved=worst_nano))
            spend.take(own)

    async def close(self) -> None:
        """Report what the book does not have yet; what does not reach it counts as spent."""
        if self._flusher is None:
            return
        await end_tasks(self._flusher)
        if self._told != (self._spent, self._reserved):
            with contextlib.suppress(BookAwayError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._exchange()

    async def _granted(self, nano: int, request_priority: int) -> None:
        waiter = _Waiter(request_priority, next(self._order), nano, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._wake()
        try:
            await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self._settle(nano, 0)
            raise

    def _settle(self, reserved: int, cost: int) -> None:
        self._reserved -= reserved
        self._spent += cost
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._serve(), name=f"budget {self.job_id}")

    async def _serve(self) -> None:
        """Report and ask in one script call a round, and show that this process lives while anything is reserved."""
        while self._waiting or self._reserved or self._told != (self._spent, self._reserved):
            self._news.clear()
            try:
                await self._exchange()
            except BookAwayError as exc:
                self._outage.begin(exc, self.job_id)
                await asyncio.sleep(REDIS_PAUSE_SECONDS)
                continue
            self._outage.end(self.job_id)
            if self._waiting or self._reserved:
                await wait_at_most(POLL_SECONDS if self._waiting else self._touch_seconds, self._news)

    async def _exchange(self) -> None:
        asking = [waiter for waiter in sorted(self._waiting) if not waiter.future.done()]
        spent, reserved, told = self._spent, self._reserved, self._told
        self._told = None
        try:
            answer = await self._book.exchange(spent, reserved, [waiter.nano for waiter in asking])
        except BookUnreadableError as exc:
            self._told = told
            for waiter in asking:
                if not waiter.future.done():
                    waiter.future.set_exception(unreadable_team(self.job_id, str(exc)))
            self._waiting = [waiter for waiter in self._waiting if not waiter.future.done()]
            raise
        standing, decided = answer or (None, [BY_JOB] * len(asking))
        granted = sum(waiter.nano for waiter, decision in zip(asking, decided, strict=True) if decision == GRANTED)
        self._told = (spent, reserved + granted) if answer else (self._spent, self._reserved)
        for waiter, decision in zip(asking, decided, strict=True):
            if decision and not waiter.future.done():
                if decision == GRANTED:
                    self._reserved += waiter.nano
                    waiter.future.set_result(None)
                else:
                    waiter.future.set_exception(self._refusal(standing, decision, waiter.nano))
        self._waiting = [waiter for waiter in self._waiting if not waiter.future.done()]

    def _refusal(self, standing: Standing | None, decision: int, nano: int) -> BudgetExceededError:
        """Why a call is not made; without `standing` the budget was deleted, and no spending would be counted."""
        if standing is None:
            return BudgetExceededError("the job's budget has left Redis", job_id=self.job_id, reason="budget")
        return Refused(decision, standing, nano).error(self.job_id)


def dead_after_seconds(settings: Settings) -> float:
    """The time of one call, and of two leases: then a silent process is found dead."""
    return settings.llm.request_timeout_seconds + 2 * settings.work.lease_seconds


class Budget:
    """The budgets of all jobs in one worker process. Create and close it on the loop that uses it."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._dead_after_seconds = dead_after_seconds(settings)
        self._limits = limits_json(settings)
        self._touch_seconds = settings.work.heartbeat_seconds
        self._jobs: dict[str, JobBudget] = {}

    def __repr__(self) -> str:
        return f"<Budget jobs={len(self._jobs)}>"

    def of(self, job_id: str) -> JobBudget:
        if job_id not in self._jobs:
            book = RedisBook(self._redis, job_id, dead_after_seconds=self._dead_after_seconds, limits=self._limits)
            self._jobs[job_id] = JobBudget(book, job_id, touch_seconds=self._touch_seconds)
        return self._jobs[job_id]

    async def close(self) -> None:
        await asyncio.gather(*(budget.close() for budget in self._jobs.values()))
