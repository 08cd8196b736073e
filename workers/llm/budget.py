"""A job's budget, kept by all workers together: a call is paid for before it is made.

    reserve an upper bound -> make the call -> settle what it really cost

Redis decides in one script (`_EXCHANGE`) with what is spent and reserved everywhere: what fits is granted; what would
fit without the calls under way waits, because most of what they have reserved comes back; what does not fit even then
ends in `BudgetExceededError`. Whatever is uncertain counts as spent: a call that hung or broke after it was sent may
have been charged, and so may what a process had under way when it died.

A process sends its totals, never differences: a script that redis-py repeats, because the reply was lost, changes
nothing. Redis away, a call waits. A job without a budget never gets here.

Where there is no Redis the books are in a file (`workers.local.state_file`), kept by the same rules (`decisions`).
"""

import asyncio
import contextlib
import itertools
import logging
import math
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, Protocol, TypeVar

from redis import RedisError
from redis.asyncio import Redis

from config.settings import Settings
from config.values import Prices
from tasks import keys
from tasks.errors import BadRequestError, BudgetExceededError, RateLimitedError, RetryableError
from tasks.jobs.budget import NANO, dollars
from tasks.lua import lua
from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.request import Turn
from workers.llm.spend import Spend
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

_EXCHANGE: Final = lua(__file__, "exchange")


def worst_case_nano(
    prices: Prices, model: str, prompt: Prompt, *, max_tokens: int, history: Sequence[Turn] = ()
) -> int | None:
    """The most that one call can cost, in nano-dollars; None where the model has no price.

    The schema counts once as the response format or as text, and once more with every turn that is asked again.
    """
    price = prices.get(model)
    if price is None:
        return None
    schema = prompt.schema.text
    texts = [prompt.system, prompt.instructions, prompt.data, schema]
    for turn in history:
        texts += [turn.answer, turn.problem, schema]
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) + WRAPPING_BYTES * (1 + len(history))
    tokens = -(-size // BYTES_PER_TOKEN)
    # Dollars per million tokens are a thousand nano-dollars a token.
    return math.ceil(1000 * (tokens * Fraction(str(price.input_usd)) + max_tokens * Fraction(str(price.output_usd))))


def settled_nano(call: Spend, error: BaseException | None, *, reserved: int) -> int:
    """What a call has cost, in nano-dollars.

    Nothing where the server never heard of it or refused it; what was counted where an answer came; else, as it may
    have been charged, all that was reserved. The tokens of one that was withdrawn are a guess, and no answer.
    """
    if call.calls == 0 or isinstance(error, RateLimitedError | BadRequestError):
        return 0
    has_tokens = call.prompt_tokens or call.completion_tokens
    is_answered = error is None or (has_tokens and not isinstance(error, asyncio.CancelledError))
    if is_answered and call.cost_usd is not None:
        return math.ceil(round(call.cost_usd * NANO, 3))
    return reserved


@dataclass(order=True, slots=True)
class _Waiter:
    rank: int
    number: int
    nano: int
    future: asyncio.Future[None]


class BookAwayError(RetryableError):
    """The budget's books cannot be had now: calls wait."""


class BudgetBook(Protocol):
    """Where a job's limit stands, and what is spent and reserved."""

    async def exchange(self, spent: int, reserved: int, amounts: Sequence[int]) -> list[int]:
        """Tell this process's totals, and ask whether it may reserve some amounts more, in nano-dollars.

        Returns the limit, what all processes have spent, and a decision for each amount: 1 granted, 0 wait, -1 never.
        Empty where there is no such budget any more.

        Raises:
            BookAwayError: nothing was granted; ask again.
        """


class RedisBook:
    """A job's budget in Redis, shared by all workers."""

    def __init__(self, redis: Redis, job_id: str, *, dead_after_seconds: float) -> None:
        self._key = keys.budget(job_id)
        self._script = redis.register_script(_EXCHANGE)
        #: Unlike that of any other process.
        self.process = uuid.uuid4().hex[:12]
        self._dead_after_ms = int(dead_after_seconds * 1000)

    def __repr__(self) -> str:
        return f"<RedisBook {self._key}>"

    async def exchange(self, spent: int, reserved: int, amounts: Sequence[int]) -> list[int]:
        """See `BudgetBook`: one script call."""
        arguments: list[str | int] = [self.process, spent, reserved, self._dead_after_ms, *amounts]
        try:
            answer: Any = await self._script(keys=[self._key], args=arguments)
        except (RedisError, OSError) as exc:
            raise BookAwayError(f"Redis does not answer ({exc})") from exc
        return [int(number) for number in answer]


def decisions(limit: int, *, certain: int, under_way: int, amounts: Sequence[int]) -> list[int]:
    """What one process alone decides, as `_EXCHANGE` does for all: 1 granted, 0 wait, -1 never."""
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
        #: Spent and reserved as the book has them.
        self._told = (0, 0)
        self._waiting: list[_Waiter] = []
        self._order = itertools.count()
        self._news = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._is_away = False

    def __repr__(self) -> str:
        spent, reserved = dollars(self._spent / NANO), dollars(self._reserved / NANO)
        return f"<JobBudget {self.job_id} spent={spent} reserved={reserved} waiting={len(self._waiting)}>"

    async def pay(self, worst_nano: int | None, spend: Spend, call: Callable[[Spend], Awaitable[T]], *, rank: int) -> T:
        """Make a call that costs `worst_nano` at most, when the budget allows it; lower ranks are served first.

        The call fills a `Spend` of its own, which is added to `spend` whatever its end.

        Raises:
            BudgetExceededError: it does not; the call was not made.
        """
        if worst_nano is None:
            raise BudgetExceededError(
                "the job has a budget, but this worker's model has no price: add it to llm.prices",
                job_id=self.job_id,
                reason="price",
            )
        await self._granted(worst_nano, rank)
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
        """Tell the book what is not told yet; what it does not hear counts as spent."""
        if self._pump is None:
            return
        await end_tasks(self._pump)
        if self._told != (self._spent, self._reserved):
            with contextlib.suppress(BookAwayError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._exchange()

    async def _granted(self, nano: int, rank: int) -> None:
        waiter = _Waiter(rank, next(self._order), nano, asyncio.get_running_loop().create_future())
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
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._serve(), name=f"budget {self.job_id}")

    async def _serve(self) -> None:
        """Tell and ask in one script call a round, and give a sign of life while anything is reserved."""
        while self._waiting or self._reserved or self._told != (self._spent, self._reserved):
            self._news.clear()
            try:
                await self._exchange()
            except BookAwayError as exc:
                if not self._is_away:
                    log.warning("action=budget_wait job_id=%s calls wait: %s", self.job_id, exc)
                self._is_away = True
                await asyncio.sleep(REDIS_PAUSE_SECONDS)
                continue
            self._is_away = False
            if self._waiting or self._reserved:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS if self._waiting else self._touch_seconds):
                        await self._news.wait()

    async def _exchange(self) -> None:
        asking = [waiter for waiter in sorted(self._waiting) if not waiter.future.done()]
        spent, reserved = self._spent, self._reserved
        amounts = [waiter.nano for waiter in asking]
        answer = await self._book.exchange(spent, reserved, amounts)
        if not answer:
            self._forget(asking)
            self._waiting = [waiter for waiter in self._waiting if not waiter.future.done()]
            return
        limit, certain, *decisions = answer
        granted = sum(waiter.nano for waiter, decision in zip(asking, decisions, strict=True) if decision == 1)
        self._told = (spent, reserved + granted)
        for waiter, decision in zip(asking, decisions, strict=True):
            self._decide(waiter, decision, limit_nano=limit, spent_nano=certain)
        self._waiting = [waiter for waiter in self._waiting if not waiter.future.done()]

    def _forget(self, asking: Sequence[_Waiter]) -> None:
        """The job has left Redis, or somebody deleted its budget: nothing is spent that nobody counts."""
        self._told = (self._spent, self._reserved)
        for waiter in asking:
            if not waiter.future.done():
                waiter.future.set_exception(
                    BudgetExceededError("the job's budget has left Redis", job_id=self.job_id, reason="budget")
                )

    def _decide(self, waiter: _Waiter, decision: int, *, limit_nano: int, spent_nano: int) -> None:
        if waiter.future.done():
            return
        if decision == 1:
            self._reserved += waiter.nano
            waiter.future.set_result(None)
        elif decision == -1:
            limit, spent, amount = (dollars(nano / NANO) for nano in (limit_nano, spent_nano, waiter.nano))
            waiter.future.set_exception(
                BudgetExceededError(
                    f"the budget of {limit} is used up: {spent} are spent, and the next call may cost {amount}",
                    job_id=self.job_id,
                    reason="budget",
                    limit_nano=limit_nano,
                )
            )


class Budget:
    """The budgets of all jobs in one worker process. Create and close it on the loop that uses it."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        #: A call may take so long, and its process two leases to be found dead.
        self._dead_after_seconds = settings.llm.request_timeout_seconds + 2 * settings.work.lease_seconds
        self._touch_seconds = settings.work.heartbeat_seconds
        self._jobs: dict[str, JobBudget] = {}

    def __repr__(self) -> str:
        return f"<Budget jobs={len(self._jobs)}>"

    def of(self, job_id: str) -> JobBudget:
        """The budget of a job that has one."""
        if job_id not in self._jobs:
            book = RedisBook(self._redis, job_id, dead_after_seconds=self._dead_after_seconds)
            self._jobs[job_id] = JobBudget(book, job_id, touch_seconds=self._touch_seconds)
        return self._jobs[job_id]

    async def close(self) -> None:
        """Tell Redis what every job has spent here."""
        await asyncio.gather(*(budget.close() for budget in self._jobs.values()))
