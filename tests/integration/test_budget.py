"""Budgets against a real Redis and the sandbox over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from config.settings import Settings
from scripts.lib.local_redis import LocalRedis
from tasks import keys
from tasks.connection import connect_async
from tasks.errors import BadRequestError, BudgetExceededError, EndpointDownError, RateLimitedError
from tasks.jobs import budget as money
from tasks.messages import Destination
from tasks.prices.table import PriceTable
from tasks.queue.ledger import PAUSE, Ledger, pause_arguments
from workers.llm.budget import BudgetBook, Exchanged, JobBudget, RedisBook, decisions, settled_nano, worst_case_nano
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.completion import StageStats
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.endpoints.request import Turn
from workers.llm.funds import FUNDS
from workers.llm.generator import FocusedLLMGenerator
from workers.llm.spend import Spend
from workers.local.state_file import StateFile
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.prompts import Input, load_stages
from workers.sandbox.server import SandboxServer

JOB = "job-1"
STAGES = {stage.name: stage for stage in load_stages()}
FOOD = STAGES["discover.food"].prompt(Input.of(Destination.of("Kyoto", "Japan")))
PRICES = {"THEMES_LLM__PRICES": "{sandbox: {input_usd: 1, output_usd: 2}}"}


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[AsyncRedis]:
    client = connect_async(redis_url, socket_timeout_seconds=180)
    yield client
    await client.aclose()


@pytest.fixture
def limit(redis: Redis) -> Callable[..., None]:
    """Give jobs a limit, in nano-dollars."""

    def give(nano: int, *jobs: str) -> None:
        for job_id in jobs or (JOB,):
            redis.hset(keys.budget(job_id), mapping={money.LIMIT: nano, money.SPENT: 0})

    return give


def _budget(client: AsyncRedis, job_id: str = JOB, dead_after_seconds: float = 600) -> JobBudget:
    book = RedisBook(client, job_id, dead_after_seconds=dead_after_seconds)
    return JobBudget(book, job_id, touch_seconds=0.05)


async def _quietly(budget: JobBudget) -> None:
    """Wait until Redis knows what this process has spent."""
    if budget._flusher:
        async with asyncio.timeout(180):
            await budget._flusher


def _books(redis: Redis, job_id: str = JOB) -> tuple[int, int]:
    fields = {key.decode(): value.decode() for key, value in redis.hgetall(keys.budget(job_id)).items()}
    reserved = sum(int(value) for name, value in fields.items() if name.endswith(money.RESERVED))
    return int(fields[money.SPENT]), reserved


def _costs(nano: int) -> Callable[[Spend], object]:
    async def call(spend: Spend) -> int:
        spend.calls += 1
        spend.take(Spend(0, 1, 1, nano / money.NANO))
        return nano

    return call


class Held:
    """A call that is under way until it is told to end."""

    def __init__(self, budget: JobBudget, worst: int, cost: int, request_priority: int = 0) -> None:
        self._end = asyncio.Event()
        self.began = asyncio.Event()
        self._cost = cost
        self.task = asyncio.create_task(budget.pay(worst, Spend(), self._call, request_priority=request_priority))

    async def _call(self, spend: Spend) -> None:
        spend.calls += 1
        self.began.set()
        await self._end.wait()
        spend.take(Spend(0, 1, 1, self._cost / money.NANO))

    async def end(self) -> None:
        """Let it end."""
        self._end.set()
        await self.task


async def _began(held: Held) -> Held:
    async with asyncio.timeout(180):
        await held.began.wait()
    return held


async def test_what_fits_is_granted_and_settled_to_what_it_cost(
    client: AsyncRedis, redis: Redis, limit: Callable[..., None]
) -> None:
    limit(100)
    budget = _budget(client)
    held = await _began(Held(budget, worst=60, cost=7))
    assert _books(redis) == (0, 60)
    await held.end()
    await _quietly(budget)
    assert _books(redis) == (7, 0)


async def test_what_would_fit_without_the_calls_under_way_waits_for_them(
    client: AsyncRedis, redis: Redis, limit: Callable[..., None]
) -> None:
    limit(100)
    mine, others = _budget(client), _budget(client)
    held = await _began(Held(others, worst=60, cost=10))
    waiting = Held(mine, worst=90, cost=90)
    async with asyncio.timeout(180):
        while not redis.hexists(keys.budget(JOB), f"{mine._book.process}:seen"):
            await asyncio.sleep(0.01)
    assert not waiting.began.is_set()
    await held.end()
    await (await _began(waiting)).end()
    await _quietly(mine)
    await _quietly(others)
    assert _books(redis) == (100, 0)


async def test_what_does_not_fit_even_alone_ends_at_once_and_costs_nothing(
    client: AsyncRedis, redis: Redis, limit: Callable[..., None]
) -> None:
    limit(100)
    budget = _budget(client)
    assert await budget.pay(50, Spend(), _costs(41), request_priority=0) == 41
    with pytest.raises(BudgetExceededError) as caught:
        await budget.pay(60, Spend(), _costs(1), request_priority=0)
    assert (caught.value.job_id, caught.value.limit_nano, caught.value.reason) == (JOB, 100, "budget")
    assert await budget.pay(59, Spend(), _costs(1), request_priority=0) == 1, "the limit itself is allowed"
    await _quietly(budget)
    assert _books(redis) == (42, 0)


@pytest.mark.parametrize("odd", ["nan", "1e999", "-1", "much", "", b"\xff"])
async def test_a_limit_that_is_no_amount_lets_no_call_through_and_pauses_the_job(
    client: AsyncRedis, redis: Redis, limit: Callable[..., None], odd: str | bytes
) -> None:
    """NaN let every call through: nothing is more than it."""
    limit(100)
    redis.hset(keys.budget(JOB), money.LIMIT, odd)
    redis.hset(keys.job(JOB), "state", "running")
    budget = _budget(client)
    with pytest.raises(BudgetExceededError) as caught:
        await budget.pay(1, Spend(), _costs(1), request_priority=0)
    assert await Ledger(client, token="w", lease_seconds=10).pause(caught.value)
    assert redis.hget(keys.job(JOB), "paused") == b"budget"


async def test_the_destination_that_started_first_is_paid_first(client: AsyncRedis, limit: Callable[..., None]) -> None:
    limit(100)
    budget = _budget(client)
    held = await _began(Held(budget, worst=80, cost=10))
    young = Held(budget, worst=50, cost=50, request_priority=2)
    old = Held(budget, worst=60, cost=60, request_priority=1)
    await held.end()
    await _began(old)
    assert not young.began.is_set()
    await old.end()
    with pytest.raises(BudgetExceededError):
        await young.task


async def test_a_dead_process_s_reservations_count_as_spent(
    client: AsyncRedis, redis: Redis, limit: Callable[..., None]
) -> None:
    limit(100)
    redis.hset(keys.budget(JOB), mapping={f"gone{money.RESERVED}": 80, "gone:seen": 1})
    with pytest.raises(BudgetExceededError, match="budget"):
        await _budget(client).pay(30, Spend(), _costs(1), request_priority=0)
    assert await _budget(client).pay(20, Spend(), _costs(20), request_priority=0) == 20


async def test_a_process_with_a_call_under_way_gives_signs_of_life(
    client: AsyncRedis, redis: Redis, limit: Callable[..., None]
) -> None:
    limit(100)
    budget = _budget(client)
    held = await _began(Held(budget, worst=10, cost=1))
    first = redis.hget(keys.budget(JOB), f"{budget._book.process}:seen")
    async with asyncio.timeout(180):
        while redis.hget(keys.budget(JOB), f"{budget._book.process}:seen") == first:
            await asyncio.sleep(0.02)
    await held.end()


async def test_many_calls_of_two_processes_never_cross_the_limit(
    client: AsyncRedis, redis: Redis, limit: Callable[..., None]
) -> None:
    limit(1000)
    processes = [_budget(client), _budget(client)]
    calls = [
        processes[number % 2].pay(50, Spend(), _costs(number % 11), request_priority=number) for number in range(600)
    ]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    paid = sum(end for end in ends if isinstance(end, int))
    assert 950 < paid <= 1000
    assert all(isinstance(end, int | BudgetExceededError) for end in ends)
    for process in processes:
        await _quietly(process)
    assert _books(redis) == (paid, 0)


async def test_a_repeated_exchange_changes_nothing(
    client: AsyncRedis, redis: Redis, limit: Callable[..., None]
) -> None:
    limit(100)
    budget = _budget(client)
    held = await _began(Held(budget, worst=30, cost=5))
    await budget._exchange()
    await budget._exchange()
    assert _books(redis) == (0, 30)
    await held.end()
    await _quietly(budget)
    for _ in range(2):
        await budget._exchange()
    assert _books(redis) == (5, 0)


async def test_a_cancelled_waiter_keeps_nothing_reserved(
    client: AsyncRedis, redis: Redis, limit: Callable[..., None]
) -> None:
    limit(100)
    budget = _budget(client)
    held = await _began(Held(budget, worst=90, cost=1))
    waiting = Held(budget, worst=50, cost=1)
    await asyncio.sleep(0)
    waiting.task.cancel()
    await asyncio.gather(waiting.task, return_exceptions=True)
    await held.end()
    await _quietly(budget)
    assert _books(redis) == (1, 0)


async def test_a_budget_that_has_left_redis_lets_nobody_spend_and_does_not_come_back(
    client: AsyncRedis, redis: Redis
) -> None:
    budget = _budget(client)
    with pytest.raises(BudgetExceededError, match="left Redis"):
        await budget.pay(1, Spend(), _costs(1), request_priority=0)
    await budget.close()
    assert not redis.exists(keys.budget(JOB))


async def test_a_call_waits_for_redis_and_is_counted_when_it_is_back(redis_server: LocalRedis) -> None:
    url = redis_server.url
    with Redis.from_url(url) as redis:
        redis.hset(keys.budget("away"), mapping={money.LIMIT: 100, money.SPENT: 0})
        redis.expire(keys.budget("away"), 600)
        # Nobody listens there; later the budget asks the real one.
        client = connect_async("redis://127.0.0.1:1/0", socket_timeout_seconds=1)
        real = connect_async(url, socket_timeout_seconds=180)
        budget = _budget(client, "away")
        waiting = Held(budget, worst=10, cost=3)
        async with asyncio.timeout(180):
            while not budget._outage.is_on:
                await asyncio.sleep(0.02)
        assert not waiting.began.is_set()
        budget._book = RedisBook(real, "away", dead_after_seconds=600)
        await (await _began(waiting)).end()
        await _quietly(budget)
        assert _books(redis, "away") == (3, 0)
        await client.aclose()
        await real.aclose()


def test_what_a_call_costs_when_it_does_not_end_well() -> None:
    sent = Spend(calls=1)
    assert settled_nano(Spend(), EndpointDownError("cannot connect"), reserved=9) == 0
    assert settled_nano(Spend(), asyncio.CancelledError(), reserved=9) == 0
    assert settled_nano(sent, RateLimitedError("429"), reserved=9) == 0
    assert settled_nano(sent, BadRequestError("400"), reserved=9) == 0
    assert settled_nano(sent, EndpointDownError("no answer"), reserved=9) == 9
    assert settled_nano(sent, asyncio.CancelledError(), reserved=9) == 9
    assert settled_nano(Spend(1, 10, 5, 3e-9), None, reserved=9) == 3


def test_the_worst_case_is_above_what_any_tokenizer_counts(settings_for: Callable[..., Settings]) -> None:
    prices = PriceTable(settings_for(**PRICES).llm)
    worst = worst_case_nano(prices, "sandbox", FOOD, max_tokens=100)
    characters = len(FOOD.system) + len(FOOD.instructions) + len(FOOD.data) + len(FOOD.schema.text)
    assert worst is not None
    assert worst > 1000 * (characters / 3) + 2000 * 100
    again = worst_case_nano(prices, "sandbox", FOOD, max_tokens=100, history=[Turn("x" * 1000, "no")])
    assert again is not None
    assert again >= worst + 1000 * (1000 + len(FOOD.schema.text)) / 2
    assert worst_case_nano(prices, "another", FOOD, max_tokens=100) is None


def test_nano_dollars_are_what_was_written() -> None:
    assert money.nano_usd(0.1) + money.nano_usd(0.2) == money.nano_usd(0.3) == 300_000_000
    assert [money.dollars(usd) for usd in (0, 1.5, 0.98, 0.1234, 0.000123)] == [
        "$0.00", "$1.50", "$0.98", "$0.123", "$0.000123",
    ]  # fmt: skip


@asynccontextmanager
async def _generator(settings: Settings) -> AsyncIterator[FocusedLLMGenerator]:
    profiler = PerformanceProfiler(enabled=True)
    cache = PersistentLLMCache(None, max_memory_mb=8, pressure_mb=4096, ttl_days=1, compress=True)
    async with LLMConnectionPool.of(settings, {settings.llm.model or ""}, profiler, None) as pool:
        yield FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)


def _settings(make: Callable[..., Settings], url: str, **env: str) -> Settings:
    return make(
        OPENAI_BASE_URL=url,
        THEMES_MODEL="sandbox",
        THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY="0.01",
        THEMES_PERFORMANCE_OPTIMIZATION__RETRY_MAX_DELAY="0.02",
        **PRICES,
        **env,
    )


async def test_a_hanging_call_keeps_its_reservation_and_an_unheard_one_does_not(
    client: AsyncRedis,
    redis: Redis,
    limit: Callable[..., None],
    settings_for: Callable[..., Settings],
    sandbox: SandboxServer,
) -> None:
    limit(money.NANO, "hangs", "unheard")
    once = {"THEMES_PERFORMANCE_OPTIMIZATION__MAX_LLM_RETRIES": "0", "THEMES_LLM__REQUEST_TIMEOUT_SECONDS": "1"}
    sandbox.set_faults(["hang=1"])
    settings = _settings(settings_for, sandbox.base_url, **once)
    worst = worst_case_nano(PriceTable(settings.llm), "sandbox", FOOD, max_tokens=FOOD.max_tokens)
    for job_id, url, cost in (("hangs", sandbox.base_url, worst), ("unheard", "http://127.0.0.1:1/v1", 0)):
        budget = _budget(client, job_id)
        stage_stats = StageStats(Spend(budget=budget))
        async with _generator(_settings(settings_for, url, **once)) as generator:
            with pytest.raises(EndpointDownError):
                await generator.answer(FOOD, stage_stats=stage_stats, request_priority=0)
        await _quietly(budget)
        assert _books(redis, job_id) == (cost, 0)


async def test_whoever_waits_for_the_answer_of_a_job_without_money_asks_for_itself(
    client: AsyncRedis, limit: Callable[..., None], settings_for: Callable[..., Settings], sandbox: SandboxServer
) -> None:
    limit(1, "poor")
    poor, free = StageStats(Spend(budget=_budget(client, "poor"))), StageStats()
    async with _generator(_settings(settings_for, sandbox.base_url)) as generator:
        ends = await asyncio.gather(
            generator.answer(FOOD, stage_stats=poor, request_priority=0),
            generator.answer(FOOD, stage_stats=free, request_priority=1),
            return_exceptions=True,
        )
    assert isinstance(ends[0], BudgetExceededError)
    assert not isinstance(ends[1], BaseException)
    assert ends[1].source == "called"
    assert (poor.spend.calls, free.spend.calls, sandbox.stats()["requests"]) == (0, 1, 1)


async def test_a_budget_in_a_file_is_kept_by_the_same_rules_and_by_the_next_process(tmp_path: Path) -> None:
    with StateFile(tmp_path) as file:
        assert await file.budget(JOB, now=None, first=None, spent_nano=0) is None
        book = await file.budget(JOB, now=None, first=100, spent_nano=0)
        assert book is not None
        budget = JobBudget(book, JOB, touch_seconds=0.05)
        first = await _began(Held(budget, worst=60, cost=10))
        second = Held(budget, worst=50, cost=50)
        await asyncio.sleep(0.05)
        assert not second.began.is_set(), "it would fit without the first, so it waits"
        await first.end()
        await (await _began(second)).end()
        with pytest.raises(BudgetExceededError) as caught:
            await budget.pay(41, Spend(), _costs(41), request_priority=0)  # type: ignore[arg-type]
        assert caught.value.reason == "budget"
        await _began(Held(budget, worst=30, cost=30))
        # Killed with a call under way: it may have been charged.
    with StateFile(tmp_path) as file:
        book = await file.budget(JOB, now=None, first=7, spent_nano=0)
        assert book is not None
        assert (book.limit_nano, book.spent_nano) == (100, 90)
        raised = await file.budget(JOB, now=200, first=100, spent_nano=120)
        assert raised is not None
        assert (raised.limit_nano, raised.spent_nano) == (200, 120), "the results database knows of more"


class LateBook:
    """A real book whose first answer does not come in time."""

    def __init__(self, book: BudgetBook) -> None:
        self._book = book
        self.is_late = asyncio.Event()

    async def exchange(self, spent: int, reserved: int, amounts: Sequence[int]) -> Exchanged | None:
        answer = await self._book.exchange(spent, reserved, amounts)
        if not self.is_late.is_set():
            self.is_late.set()
            await asyncio.Event().wait()
        return answer


async def _leave_while_a_grant_is_on_its_way(book: BudgetBook) -> None:
    late = LateBook(book)
    budget = JobBudget(late, JOB, touch_seconds=0.05)
    paying = asyncio.create_task(budget.pay(60, Spend(), _costs(60), request_priority=0))  # type: ignore[arg-type]
    async with asyncio.timeout(180):
        await late.is_late.wait()
    paying.cancel()
    await budget.close()


async def test_a_grant_that_nobody_got_is_not_spent(
    tmp_path: Path, client: AsyncRedis, redis: Redis, limit: Callable[..., None]
) -> None:
    limit(100)
    await _leave_while_a_grant_is_on_its_way(RedisBook(client, JOB, dead_after_seconds=600))
    assert _books(redis) == (0, 0)
    with StateFile(tmp_path) as file:
        book = await file.budget(JOB, now=None, first=100, spent_nano=0)
        assert book is not None
        await _leave_while_a_grant_is_on_its_way(book)
    with StateFile(tmp_path) as file:
        book = await file.budget(JOB, now=None, first=None, spent_nano=0)
        assert book is not None
        assert book.spent_nano == 0


@given(st.integers(0, 500), st.integers(0, 500), st.lists(st.integers(0, 200), max_size=8))
def test_decisions_alone_never_cross_the_limit_and_serve_who_asks_first(
    certain: int, under_way: int, amounts: list[int]
) -> None:
    decided = decisions(500, certain=certain, under_way=under_way, amounts=amounts)
    granted = sum(amount for amount, decision in zip(amounts, decided, strict=True) if decision == 1)
    assert not granted or certain + under_way + granted <= 500
    assert all((decision == -1) == (certain + amount > 500) for amount, decision in zip(amounts, decided, strict=True))
    if 0 in decided:
        assert 1 not in decided[decided.index(0) :], "after one that waits all wait"


TEAM = "research"
LIMITS = b'{"research": [1000, 5000], "open": [null, null]}'


def _team_budget(client: AsyncRedis, redis: Redis, job_id: str, *, team: str = TEAM, dead: float = 600) -> JobBudget:
    redis.hset(keys.budget(job_id), "team", team)
    book = RedisBook(client, job_id, dead_after_seconds=dead, limits=LIMITS)
    return JobBudget(book, job_id, touch_seconds=0.2)


def _today(redis: Redis) -> tuple[str, str]:
    seconds: Any = redis.time()
    day = f"{datetime.fromtimestamp(seconds[0], UTC):%Y-%m-%d}"
    return day, day[:7]


def _of_team(redis: Redis, *names: str) -> list[int]:
    return [int(value or 0) for value in redis.hmget(keys.team(TEAM), *names)]  # type: ignore[union-attr]


async def test_jobs_of_a_team_share_its_budget_of_the_day(client: AsyncRedis, redis: Redis) -> None:
    one, two = _team_budget(client, redis, "job-1"), _team_budget(client, redis, "job-2")
    await one.pay(400, Spend(), _costs(350), request_priority=0)
    await two.pay(400, Spend(), _costs(350), request_priority=0)
    await _quietly(one)
    await _quietly(two)
    assert _of_team(redis, *_today(redis)) == [700, 700]
    with pytest.raises(BudgetExceededError, match="a day are used up") as refused:
        await one.pay(301, Spend(), _costs(1), request_priority=0)
    assert refused.value.reason == "team"
    seconds: Any = redis.time()
    assert refused.value.until is not None
    assert 0 < refused.value.until - seconds[0] <= 86_400
    assert refused.value.until % 86_400 == 0
    await two.pay(300, Spend(), _costs(300), request_priority=0)
    await two.close()
    assert _of_team(redis, *_today(redis)) == [1000, 1000]


async def test_a_call_waits_for_what_another_job_of_its_team_has_reserved(client: AsyncRedis, redis: Redis) -> None:
    one, two = _team_budget(client, redis, "job-1"), _team_budget(client, redis, "job-2")
    first = await _began(Held(one, 800, 100))
    second = asyncio.create_task(two.pay(300, Spend(), _costs(300), request_priority=0))
    await asyncio.sleep(0.4)
    assert not second.done()
    await first.end()
    await second
    await _quietly(two)
    assert _of_team(redis, *_today(redis)) == [400, 400]
    assert [name for name in redis.hkeys(keys.team(TEAM)) if b"reserved" in name] == []  # type: ignore[union-attr]


async def test_a_call_waits_for_another_of_its_own_job_and_process(client: AsyncRedis, redis: Redis) -> None:
    budget = _team_budget(client, redis, "job-1")
    first = await _began(Held(budget, 800, 100))
    second = asyncio.create_task(budget.pay(300, Spend(), _costs(300), request_priority=0))
    await asyncio.sleep(0.4)
    assert not second.done()
    await first.end()
    await second


async def test_the_budget_of_the_month_holds_beyond_the_day(client: AsyncRedis, redis: Redis) -> None:
    _, month = _today(redis)
    redis.hset(keys.team(TEAM), month, 4_900)
    budget = _team_budget(client, redis, "job-1")
    with pytest.raises(BudgetExceededError, match="a month are used up") as refused:
        await budget.pay(101, Spend(), _costs(1), request_priority=0)
    assert datetime.fromtimestamp(refused.value.until or 0, UTC).day == 1
    await budget.pay(100, Spend(), _costs(100), request_priority=0)


async def test_what_a_dead_process_has_reserved_is_spent_by_its_team_once(client: AsyncRedis, redis: Redis) -> None:
    dead = _team_budget(client, redis, "job-1", dead=0.3)
    held = await _began(Held(dead, 700, 0))
    # No more signs of life: as a kill leaves it.
    assert dead._flusher is not None
    dead._flusher.cancel()
    await asyncio.sleep(0.6)
    other = _team_budget(client, redis, "job-2", dead=0.3)
    with pytest.raises(BudgetExceededError, match="a day are used up"):
        await other.pay(301, Spend(), _costs(1), request_priority=0)
    await other.pay(300, Spend(), _costs(50), request_priority=0)
    await _quietly(other)
    assert _of_team(redis, *_today(redis)) == [750, 750]
    held.task.cancel()


async def test_a_call_does_not_wait_for_batches_of_its_team(client: AsyncRedis, redis: Redis) -> None:
    batch = {"job-9/batch-tag:reserved": 800, "job-9/batch-tag:seen": 9_000_000_000_000_000}
    redis.hset(keys.team(TEAM), mapping=batch)
    redis.hset(keys.budget("job-9"), "team", TEAM)
    budget = _team_budget(client, redis, "job-1")
    with pytest.raises(BudgetExceededError, match="batches under way hold what is left") as refused:
        await budget.pay(300, Spend(), _costs(1), request_priority=0)
    seconds: Any = redis.time()
    assert refused.value.reason == "team"
    assert 0 < (refused.value.until or 0) - seconds[0] <= 301
    # What another call has reserved comes back in a moment: that is waited for.
    held = await _began(Held(_team_budget(client, redis, "job-2"), 150, 10))
    waiting = asyncio.create_task(budget.pay(150, Spend(), _costs(1), request_priority=0))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await held.end()
    await waiting


async def test_one_that_was_only_cut_off_is_charged_what_its_calls_have_cost(client: AsyncRedis, redis: Redis) -> None:
    silent, other = (_team_budget(client, redis, job_id, dead=0.3) for job_id in ("job-1", "job-2"))
    held = await _began(Held(silent, 700, 100))
    assert silent._flusher is not None
    silent._flusher.cancel()
    await asyncio.sleep(0.6)
    await other.pay(300, Spend(), _costs(50), request_priority=0)
    await _quietly(other)
    assert _of_team(redis, *_today(redis)) == [750, 750]
    await held.end()
    await _quietly(silent)
    assert _of_team(redis, *_today(redis)) == [150, 150]
    left: Any = redis.hkeys(keys.team(TEAM))
    assert sorted(name.decode() for name in left) == sorted(_today(redis))


async def test_a_team_s_days_and_its_dead_are_forgotten_after_two_months(client: AsyncRedis, redis: Redis) -> None:
    now: Any = redis.time()
    days = [f"{datetime.fromtimestamp(now[0], UTC) - timedelta(days=number):%Y-%m-%d}" for number in (1, 60, 64, 400)]
    redis.hset(keys.team(TEAM), mapping=dict.fromkeys(days, 5))
    redis.hset(keys.team(TEAM), mapping={"2020-01": 9, "old/gone:lost": 3, "old/gone:seen": 1_000})
    budget = _team_budget(client, redis, "job-1")
    await budget.pay(400, Spend(), _costs(350), request_priority=0)
    await _quietly(budget)
    left: Any = redis.hkeys(keys.team(TEAM))
    assert {name.decode() for name in left} == {"2020-01", *days[:2], *_today(redis)}


async def test_what_a_question_costs_redis_does_not_grow_with_those_who_ask(
    client: AsyncRedis, redis: Redis, limit: Callable[..., None]
) -> None:
    limit(10**9)
    others = {f"p{number}:{what}": 1 for number in range(20) for what in ("reserved", "seen")}
    redis.hset(keys.budget(JOB), mapping=others)
    redis.hset(keys.team(TEAM), mapping={f"job-2/{name}": 9 * 10**12 for name in others})
    book = RedisBook(client, JOB, dead_after_seconds=600, limits=LIMITS)

    async def commands(spent: int) -> int:
        await book.exchange(spent, 0, [1])
        redis.config_resetstat()
        await book.exchange(spent + 1, 0, [1])
        stats: Any = redis.info("commandstats")
        return sum(one["calls"] for name, one in stats.items() if name.startswith(("cmdstat_h", "cmdstat_time")))

    assert await commands(0) <= 8
    redis.hset(keys.budget(JOB), "team", TEAM)
    assert await commands(2) <= 16


async def test_a_team_that_a_worker_does_not_know_may_spend_nothing(client: AsyncRedis, redis: Redis) -> None:
    stranger = _team_budget(client, redis, "job-1", team="unheard")
    with pytest.raises(BudgetExceededError, match=r"teams\.budgets") as refused:
        await stranger.pay(1, Spend(), _costs(1), request_priority=0)
    assert (refused.value.reason, refused.value.until) == ("team", None)
    free = _team_budget(client, redis, "job-2", team="open")
    await free.pay(10**12, Spend(), _costs(10**12), request_priority=0)
    await free.close()


async def test_a_job_keeps_to_its_own_budget_too(client: AsyncRedis, redis: Redis, limit: Callable[..., None]) -> None:
    limit(200, "job-1")
    budget = _team_budget(client, redis, "job-1")
    with pytest.raises(BudgetExceededError) as refused:
        await budget.pay(201, Spend(), _costs(1), request_priority=0)
    assert (refused.value.reason, refused.value.limit_nano) == ("budget", 200)


def test_the_days_of_scripts_are_those_of_the_calendar(redis: Redis) -> None:
    script = FUNDS + "return {periods(tonumber(ARGV[1]))}"
    days = [0, 58, 59, 60, 364, 365, 789, 11_016, 11_017, 19_782, 19_783, 20_786, 47_540, *range(0, 60_000, 977)]
    for day in days:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)
        found: Any = redis.eval(script, 0, str(day * 86_400_000 + 86_399_999))
        assert [one.decode() for one in found] == [f"{moment:%Y-%m-%d}", f"{moment:%Y-%m}"]


@pytest.mark.parametrize("wrong", ["no hash", "nan", "-5"])
async def test_a_team_that_cannot_be_read_spends_nothing_and_loses_nothing(
    client: AsyncRedis, redis: Redis, wrong: str
) -> None:
    budget, place = _team_budget(client, redis, "job-1"), keys.team(TEAM)
    held = await _began(Held(budget, 300, 200))
    kept: Any = redis.hgetall(place)
    if wrong == "no hash":
        redis.delete(place)
        redis.set(place, "x")
    else:
        redis.hset(place, _today(redis)[0], wrong)
    with pytest.raises(BudgetExceededError, match=r"team cannot be read \(.*themes:team:research") as refused:
        await budget.pay(1, Spend(), _costs(1), request_priority=0)
    assert (refused.value.reason, refused.value.until) == ("team", None)
    await held.end()
    # Told again and again what cannot be written: its first half neither.
    before: Any = redis.info("commandstats")
    async with asyncio.timeout(180):
        while redis.info("commandstats")["cmdstat_evalsha"]["calls"] < before["cmdstat_evalsha"]["calls"] + 2:  # type: ignore[index]
            await asyncio.sleep(0.02)
    assert _books(redis, "job-1") == (0, 300)
    redis.delete(place)
    redis.hset(place, mapping=kept)
    await _quietly(budget)
    assert _books(redis, "job-1") == (200, 0)
    assert _of_team(redis, *_today(redis)) == [200, 200]


async def test_a_call_that_no_day_has_room_for_waits_for_no_day(client: AsyncRedis, redis: Redis) -> None:
    budget = _team_budget(client, redis, "job-1")
    with pytest.raises(BudgetExceededError, match=r"a day \(teams.budgets\) are less than the next call") as refused:
        await budget.pay(1001, Spend(), _costs(1), request_priority=0)
    assert (refused.value.reason, refused.value.until) == ("team", None)


async def test_what_a_job_that_left_redis_had_reserved_is_spent_and_not_held_for_ever(
    client: AsyncRedis, redis: Redis
) -> None:
    far = 9_000_000_000_000_000
    redis.hset(keys.team(TEAM), mapping={"gone/batch-t:reserved": 600, "gone/batch-t:seen": far})
    budget = _team_budget(client, redis, "job-1")
    await budget.pay(400, Spend(), _costs(100), request_priority=0)
    await _quietly(budget)
    assert _of_team(redis, *_today(redis), "gone/batch-t:reserved") == [700, 700, 0]


async def test_a_user_s_pause_outlasts_the_one_that_ends_by_itself(client: AsyncRedis, redis: Redis) -> None:
    redis.hset(keys.job(JOB), "state", "running")
    ledger = Ledger(client, token="t", lease_seconds=10)
    assert await ledger.pause(BudgetExceededError("day", job_id=JOB, reason="team", until=1.0))
    redis.eval(PAUSE, 3, keys.job(JOB), keys.budget(JOB), keys.events(JOB), *pause_arguments(JOB, "user", "paused"))
    await ledger.sweep(JOB)
    assert redis.hmget(keys.job(JOB), "paused", "paused_message", "paused_until") == [b"user", b"paused", None]
