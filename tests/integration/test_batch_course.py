"""Batches from a question to its answer: the store, the keeper and a provider, with what settings change."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import ResponseError

from config.settings import Settings
from tasks.connection import connect_async
from tasks.errors import JobPausedError, ParkedError
from tasks.jobs.batches import Batch, read
from tasks.messages import Destination
from tests.support.providers import Alter, altered, as_it_is
from workers.llm.batches import course
from workers.llm.batches.course import Courses
from workers.llm.batches.desk import BatchDesk
from workers.llm.batches.keeper import BatchKeeper, _Shelf
from workers.llm.batches.provider import Provider
from workers.llm.batches.questions import IN_CACHE, LATE, Settled
from workers.llm.batches.redis_store import RedisBatchStore
from workers.llm.billing import Billing
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.spend import Spend, Terms
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.prompts import Input, load_stages
from workers.sandbox.server import SandboxServer

MakeSettings = Callable[..., Settings]
FOOD = next(stage for stage in load_stages() if stage.name == "discover.food")
QUICK = {
    "BATCH_FORM_SECONDS": "0.05", "BATCH_POLL_SECONDS": "0.05", "BATCH_SETTLE_SECONDS": "0.2",
    "PRICES": "{sandbox: {input_usd: 1, output_usd: 2}}",
}  # fmt: skip


@dataclass
class Bench:
    server: SandboxServer
    store: RedisBatchStore
    desk: BatchDesk
    redis: Any
    keeper: BatchKeeper
    paused: list[JobPausedError]
    woken: list[str]

    async def ask(self, name: str, *, job_id: str = "job", chunk: str = "") -> bytes | None:
        """The answer to a prompt about a destination; None where it waits."""
        terms = Terms("batch", None, job_id, chunk or f"chunk {name}", f"{name} 1")
        place = self.desk.place(f"key-{name}", f"key-{name}", Spend(terms=terms), is_fresh=False)
        prompt = FOOD.prompt(Input.of(Destination.of(name)))
        try:
            return await self.desk.answer(place, prompt, "sandbox", max_tokens=FOOD.max_tokens)
        except ParkedError:
            return None

    async def until_held(self) -> None:
        """Wait until this process keeps the batches."""
        async with asyncio.timeout(30):
            while not self.store.is_held:
                await asyncio.sleep(0.02)

    async def answers(self, names: list[str]) -> list[bytes]:
        """The answers to prompts, once all have an end."""
        async with asyncio.timeout(60):
            while None in (found := [await self.ask(name) for name in names]):
                await asyncio.sleep(0.05)
        return [one for one in found if one is not None]

    async def batches(self, job_id: str = "job") -> list[Batch]:
        return read(await self.redis.hgetall(f"themes:job:{job_id}:batches"))

    async def at_rest(self) -> None:
        async with asyncio.timeout(60):
            while any(one.state != "ended" for one in await self.batches()):
                await asyncio.sleep(0.05)


@pytest.fixture
def bench(redis_url: str, settings_for: MakeSettings, tmp_path: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def made(
        habits: str = "delay=0", *, server: dict[str, Any] | None = None, alter: Alter = as_it_is, **llm: str
    ) -> AsyncIterator[Bench]:
        async with (
            SandboxServer(latency="0", batches=habits, **(server or {})) as sandbox,
            altered(sandbox.base_url, alter) as base_url,
        ):
            env = {f"THEMES_LLM__{name.upper()}": value for name, value in {**QUICK, **llm}.items()}
            settings = settings_for(OPENAI_BASE_URL=base_url, THEMES_MODEL="sandbox", **env)
            profiler, redis = PerformanceProfiler(enabled=True), connect_async(redis_url, socket_timeout_seconds=10)
            await redis.hset("themes:job:job", mapping={"state": "running"})
            woken: list[str] = []
            paused: list[JobPausedError] = []

            async def wake(_: str, labelled: list[tuple[str, str]], __: int) -> None:
                woken.extend(chunk_id for chunk_id, _ in labelled)

            async def pause(error: JobPausedError) -> bool:
                paused.append(error)
                await redis.hset(f"themes:job:{error.job_id}", "paused", error.reason)
                return True

            limits = b'{"research": [1000000000, null]}'
            store = RedisBatchStore(redis, wake=wake, lease_seconds=5, dead_after_seconds=30, limits=limits)
            async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, redis) as pool:
                desk = BatchDesk(store, pool.routes, settings, Billing(settings), is_kept=True, ttl_ms=60_000)
                courses = Courses(store, pool.routes, settings, profiler, tmp_path)
                keeper = BatchKeeper(store, courses, settings, pause=pause)
                task = asyncio.create_task(keeper.run())
                try:
                    yield Bench(sandbox, store, desk, redis, keeper, paused, woken)
                finally:
                    task.cancel()
                    await asyncio.wait({task})
                    await redis.aclose()

    return made


async def test_a_server_that_refuses_a_format_is_asked_in_another_by_batch(bench: Any) -> None:
    async with bench(server={"formats": ["text"]}) as one:
        found = await one.answers(["Kyoto", "Nara", "Paris"])
        await one.at_rest()
        assert LATE not in found
        assert {tier: paid["requests"] for tier, paid in one.server.stats()["billed"].items()} == {"batch": 3}
        assert [batch.answered for batch in await one.batches()] == [0, 0, 3]
        assert [batch.unanswered for batch in await one.batches()] == [3, 3, 0]


async def test_a_batch_has_no_more_than_it_may(bench: Any) -> None:
    names = [f"City {number}" for number in range(9)]
    async with bench(batch_max_requests="4", batch_form_seconds="0.5") as one:
        await one.answers(names)
        assert [batch.requests for batch in await one.batches()] == [4, 4, 1]
    async with bench(batch_max_mb="0.01", batch_form_seconds="0.5") as one:
        more = [f"Town {number}" for number in range(9)]
        await one.answers(more)
        small = (await one.batches())[3:]
        assert sum(batch.requests for batch in small) == 9
        assert len(small) >= 3
        assert max(batch.size_bytes for batch in small) <= 0.01 * 1024 * 1024


@pytest.mark.parametrize("keep", [True, False])
async def test_files_stay_where_that_is_wanted(bench: Any, keep: bool) -> None:
    async with bench(batch_keep_files=str(keep)) as one:
        await one.answers(["Kyoto"])
        await one.at_rest()
        assert one.server.stats()["batches"]["files"] == (2 if keep else 0)


async def test_a_batch_is_booked_at_its_factor(bench: Any) -> None:
    async with bench(batch_price_factor="0.25") as one:
        await one.answers(["Kyoto"])
        await one.at_rest()
        (batch,) = await one.batches()
        paid = one.server.stats()["billed"]["batch"]
        standard = (paid["prompt_tokens"] + 2 * paid["completion_tokens"]) / 1e6
        assert batch.saved_usd == pytest.approx(standard * 0.75)


@pytest.mark.parametrize(("settle", "batches"), [("9", 1), ("0", 2)])
async def test_a_list_that_lags_is_waited_for(bench: Any, settle: str, batches: int) -> None:
    async with bench("delay=0,lost_creates=1,lag=3", batch_settle_seconds=settle) as one:
        await one.answers(["Kyoto"])
        await one.at_rest()
        assert one.server.stats()["batches"]["batches"] == batches


@pytest.mark.parametrize(("poll", "looks"), [("0.05", range(6, 1000)), ("60", range(1, 5))])
async def test_a_batch_is_looked_at_as_often_as_is_set(
    bench: Any, monkeypatch: pytest.MonkeyPatch, poll: str, looks: range
) -> None:
    seen: list[str] = []
    status = Provider.status

    async def counted(self: Provider, batch_id: str) -> Any:
        seen.append(batch_id)
        return await status(self, batch_id)

    monkeypatch.setattr(Provider, "status", counted)
    async with bench("delay=2.5", batch_poll_seconds=poll) as one:
        await one.answers(["Kyoto"])
        assert len(seen) in looks


def test_questions_become_a_batch_when_no_more_come(settings_for: MakeSettings) -> None:
    settings = settings_for(THEMES_LLM__BATCH_FORM_SECONDS="2", THEMES_LLM__BATCH_MAX_REQUESTS="10")
    shelf = _Shelf()
    began = shelf.since
    shelf.seen(3, began)
    assert not shelf.is_due(settings, began + 1.9)
    shelf.seen(4, began + 1.9)
    assert not shelf.is_due(settings, began + 3.8)
    assert shelf.is_due(settings, began + 3.9)
    for at in range(2, 12):
        shelf.seen(4 + at % 2, began + at)
    assert not shelf.is_due(settings, began + 11.9)
    assert shelf.is_due(settings, began + 12), "questions that keep coming are waited for six times as long"
    shelf.seen(10, began + 1)
    assert shelf.is_due(settings, began + 1)


async def test_lines_that_fail_twice_are_asked_otherwise(bench: Any) -> None:
    async with bench("delay=0,line_errors=1") as one:
        assert await one.answers(["Kyoto", "Nara"]) == [LATE, LATE]
        await one.at_rest()
        assert [(batch.requests, batch.unanswered) for batch in await one.batches()] == [(2, 2), (2, 2)]


async def test_a_refused_account_pauses_the_job_and_holds_no_question_back(bench: Any) -> None:
    async with bench(server={"api_key": "another"}) as one:
        assert await one.ask("Kyoto") is None
        async with asyncio.timeout(30):
            while not one.paused:
                await asyncio.sleep(0.02)
        assert one.paused[0].reason == "account"
        await one.at_rest()
        assert [(batch.requests, batch.unanswered, batch.id) for batch in await one.batches()] == [(1, 1, "")]


async def test_a_chunk_runs_again_when_its_last_question_has_its_answer(bench: Any, redis: Any) -> None:
    async with bench("delay=0.3") as one:
        assert await one.ask("Kyoto") is None
        await one.redis.hset("themes:job:job:owners", "chunk Kyoto", "batch")
        await one.redis.zadd("themes:job:job:leases", {"chunk Kyoto": 9e15})
        await one.answers(["Kyoto"])
        async with asyncio.timeout(30):
            while not one.woken:
                await asyncio.sleep(0.02)
        assert one.woken == ["chunk Kyoto"]
        assert redis.zcard("themes:job:job:leases") == 0
        assert not redis.exists("themes:job:job:parked:chunk Kyoto")


async def test_a_job_that_cannot_be_read_stops_no_other(bench: Any, redis: Any) -> None:
    async with bench() as one:
        redis.hset("themes:job:broken", mapping={"state": "running", "options": "{no"})
        redis.set("themes:job:odd", "no hash")
        redis.sadd("themes:batches:jobs", "broken", "odd")
        assert LATE not in await one.answers(["Kyoto"])


async def test_a_batch_that_was_refused_before_is_not_taken_for_one_that_was_created_since(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(course, "MAX_RETRY_SECONDS", 0.2)
    created: list[str] = []
    cancelled: list[str] = []
    full = {"data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]}

    def alter(asked: str, status: int, body: bytes) -> tuple[int, bytes]:
        if asked == "POST /v1/batches":
            created.append(msgspec.json.decode(body)["id"])
            if len(created) == 2:
                return 502, b"lost"
        elif asked.endswith("/cancel"):
            cancelled.append(asked)
        elif created and asked.startswith("GET /v1/batches"):
            data = msgspec.json.decode(body)
            for each in data.get("data", [data]):
                if each["id"] == created[0]:
                    each |= {"status": "failed", "output_file_id": None, "error_file_id": None, "errors": full}
            return status, msgspec.json.encode(data)
        return status, body

    async with bench("delay=2", alter=alter) as one:
        await one.answers(["Kyoto"])
        assert not cancelled
        assert len(created) == 2


async def test_a_batch_that_cannot_be_seen_yet_is_looked_for_again(bench: Any) -> None:
    seen: list[str] = []

    def alter(asked: str, status: int, body: bytes) -> tuple[int, bytes]:
        if asked.startswith("GET /v1/batches/"):
            seen.append(asked)
            if len(seen) <= 2:
                return 404, b'{"error": {"message": "No such batch."}}'
        return status, body

    async with bench(alter=alter, batch_settle_seconds="20") as one:
        await one.answers(["Kyoto"])
        assert not one.paused
        assert one.server.stats()["billed"]["batch"]["requests"] == 1


async def test_a_file_that_is_gone_again_and_again_is_sent_again_with_a_pause(bench: Any) -> None:
    creates: list[float] = []

    def alter(asked: str, status: int, body: bytes) -> tuple[int, bytes]:
        if asked == "POST /v1/batches":
            creates.append(time.monotonic())
            return 400, b'{"error": {"message": "No such file: file-1"}}'
        return status, body

    async with bench(alter=alter) as one:
        assert await one.ask("Kyoto") is None
        async with asyncio.timeout(60):
            while len(creates) < 3:
                await asyncio.sleep(0.02)
        assert creates[2] - creates[0] > course.RETRY_SECONDS


async def test_an_answer_counts_whatever_else_a_file_says_of_its_question(bench: Any) -> None:
    def alter(asked: str, status: int, body: bytes) -> tuple[int, bytes]:
        if asked.endswith("/content"):
            line = msgspec.json.decode(body)
            error = line | {"response": {"status_code": 500, "body": {"error": {"message": "no"}}}}
            body = b"\n".join(map(msgspec.json.encode, (error, line, line | {"custom_id": "other"}, error)))
        return status, body

    async with bench(alter=alter) as one:
        assert LATE not in await one.answers(["Kyoto"])
        await one.at_rest()
        assert one.server.stats()["billed"]["batch"]["requests"] == 1


@pytest.mark.parametrize("why", ["user", "account"])
async def test_a_job_waits_for_no_question_of_a_paused_one(bench: Any, why: str) -> None:
    """Neither on a shelf nor in a batch that the provider has not taken."""
    refused: list[str] = []

    def alter(asked: str, status: int, body: bytes) -> tuple[int, bytes]:
        if why == "account" and asked == "POST /v1/files" and not refused:
            refused.append(asked)
            return 401, b'{"error": {"message": "Incorrect API key", "code": "invalid_api_key"}}'
        return status, body

    async with bench(alter=alter) as one:
        await one.redis.hset("themes:job:other", mapping={"state": "running"})
        if why == "user":
            await one.redis.hset("themes:job:job", "paused", why)
        assert await one.ask("Kyoto") is None
        async with asyncio.timeout(60):
            while await one.ask("Kyoto", job_id="other") is None:
                await asyncio.sleep(0.05)
        assert [error.reason for error in one.paused] == ["account"] * len(refused)
        assert [batch.answered for batch in await one.batches("other")] == [1]


async def test_a_budget_that_comes_while_questions_wait_is_kept(bench: Any) -> None:
    async with bench(batch_form_seconds="2") as one:
        assert await one.ask("Kyoto") is None
        await one.redis.hset("themes:job:job:budget", "limit", 1)
        async with asyncio.timeout(60):
            while not one.paused:
                await asyncio.sleep(0.02)
        assert one.paused[0].reason == "budget"
        assert one.server.stats()["billed"] == {}


async def test_a_batch_that_is_completed_without_its_files_is_looked_at_again(bench: Any) -> None:
    ended: list[str] = []

    def alter(asked: str, status: int, body: bytes) -> tuple[int, bytes]:
        if asked.startswith("GET /v1/batches/") and b'"completed"' in body:
            data = msgspec.json.decode(body)
            if data["status"] == "completed" and len(ended) < 2:
                ended.append(asked)
                return status, msgspec.json.encode(data | {"output_file_id": None})
        return status, body

    async with bench(alter=alter, batch_settle_seconds="20") as one:
        assert LATE not in await one.answers(["Kyoto"])
        assert one.server.stats()["billed"]["batch"]["requests"] == 1


async def test_a_woken_chunk_of_a_job_that_cannot_be_read_stops_no_other(bench: Any, redis: Any) -> None:
    async with bench() as one:
        redis.hset("themes:job:broken", mapping={"options": "{no"})
        redis.rpush("themes:batches:woken", "broken c1", "job c2")
        async with asyncio.timeout(30):
            while redis.llen("themes:batches:woken"):
                await asyncio.sleep(0.02)
        assert one.woken == ["c2"]


async def test_what_the_cache_has_got_since_the_look_is_not_asked(bench: Any, redis: Any) -> None:
    async with bench() as one:
        redis.set("themes:cache:key-Kyoto", b"a completion", ex=60)
        assert await one.ask("Kyoto") == IN_CACHE
        assert not redis.exists("themes:batch:question:key-Kyoto")


async def test_a_chunk_goes_on_with_what_a_batch_has_answered_of_it(bench: Any, redis: Any) -> None:
    """One of its two questions expires and waits for another batch: the other destination's answer is there."""
    async with bench("delay=0,share=0.5,window=0.6", batch_form_seconds="0.3") as one:
        assert await one.ask("Kyoto", chunk="c") is None
        assert await one.ask("Nara", chunk="c") is None
        redis.hset("themes:job:job:owners", "c", "batch")
        async with asyncio.timeout(30):
            while not one.woken:
                await asyncio.sleep(0.02)
        assert one.woken == ["c"]
        assert redis.scard("themes:job:job:parked:c") == 1


async def test_a_line_has_its_end_once_however_often_it_is_read(bench: Any, redis: Any) -> None:
    async with bench(batch_form_seconds="3600") as one:
        redis.hset("themes:job:job:budget", mapping={"limit": 10**9, "spent": 0})
        assert await one.ask("Kyoto") is None
        await one.until_held()
        taken = await one.store.take(Batch("tag", "job", "llm", "sandbox", 1.0), "llm/sandbox", 10, 10**6)
        assert taken.count == 1
        assert int(redis.hget("themes:job:job:budget", "batch-tag:reserved")) > 0
        end = Settled("key-Kyoto", "answered", b'{"a": 1}', 7, b"[]", 0.5)
        for _ in range(2):
            batch = await one.store.settle(taken.batch, [end, end])
        assert (batch.requests, batch.answered, batch.unanswered, batch.saved_usd) == (1, 1, 0, 0.5)
        assert redis.hgetall("themes:job:job:batches:bills:tag") == {b"Kyoto 1": b"[]\n"}
        money = redis.hmget("themes:job:job:budget", "spent", "batch-tag:reserved")
        assert money == [b"7", None]
        assert (redis.get("themes:batches:open"), await one.ask("Kyoto")) == (b"0", b'{"a": 1}')


async def test_a_budget_that_comes_after_a_batch_was_sent_gets_nothing_back_from_it(bench: Any, redis: Any) -> None:
    async with bench(batch_form_seconds="3600") as one:
        assert await one.ask("Kyoto") is None
        await one.until_held()
        taken = await one.store.take(Batch("tag", "job", "llm", "sandbox", 1.0), "llm/sandbox", 10, 10**6)
        redis.hset("themes:job:job:budget", mapping={"limit": 10**9, "spent": 0})
        await one.store.settle(taken.batch, [Settled("key-Kyoto", "answered", b"{}", 7, b"[]", 0.0)])
        assert redis.hgetall("themes:job:job:budget") == {b"limit": b"1000000000", b"spent": b"7"}


async def test_a_batch_is_paid_from_its_team_s_budget_and_gives_back_what_it_did_not_cost(
    bench: Any, redis: Any
) -> None:
    async with bench(batch_form_seconds="3600") as one:
        redis.hset("themes:job:job:budget", mapping={"team": "research", "spent": 0})
        for town in ("Kyoto", "Nara"):
            assert await one.ask(town) is None
        await one.until_held()
        taken = await one.store.take(Batch("tag", "job", "llm", "sandbox", 1.0), "llm/sandbox", 1, 10**6)
        worst = int(redis.hget("themes:team:research", "job/batch-tag:reserved"))
        assert worst == int(redis.hget("themes:job:job:budget", "batch-tag:reserved")) > 0
        day = f"{datetime.fromtimestamp(redis.time()[0], UTC):%Y-%m-%d}"
        redis.hset("themes:team:research", day, 10**9 - 2 * worst + 1)
        waits = await one.store.take(taken.batch, "llm/sandbox", 1, 10**6)
        assert (waits.count, waits.stopped) == (0, "waits")
        await one.store.settle(taken.batch, [Settled("key-Kyoto", "answered", b"{}", 7, b"[]", 0.0)])
        assert redis.hmget("themes:team:research", day, day[:7]) == [b"%d" % (10**9 - 2 * worst + 8), b"7"]
        assert redis.hget("themes:team:research", "job/batch-tag:reserved") is None
        redis.hset("themes:team:research", day, 10**9)
        refused = await one.store.take(taken.batch, "llm/sandbox", 1, 10**6)
        assert (refused.count, refused.stopped, refused.refused.error("job").reason) == (0, "refused", "team")


async def test_a_batch_waits_with_its_team_s_books_until_they_can_be_read(bench: Any, redis: Any) -> None:
    async with bench(batch_form_seconds="3600") as one:
        redis.hset("themes:job:job:budget", mapping={"team": "research", "spent": 0})
        for town in ("Kyoto", "Nara"):
            assert await one.ask(town) is None
        await one.until_held()
        taken = await one.store.take(Batch("tag", "job", "llm", "sandbox", 1.0), "llm/sandbox", 1, 10**6)
        day = f"{datetime.fromtimestamp(redis.time()[0], UTC):%Y-%m-%d}"
        redis.hset("themes:team:research", day, "nan")
        refused = await one.store.take(taken.batch, "llm/sandbox", 1, 10**6)
        assert (refused.count, refused.stopped, refused.refused.error("job").reason) == (0, "refused", "team")
        ends = [Settled("key-Kyoto", "answered", b"{}", 7, b"[]", 0.0)]
        with pytest.raises(ResponseError, match="UNREADABLE"):
            await one.store.settle(taken.batch, ends)
        assert redis.hget("themes:job:job:budget", "spent") == b"0"
        redis.hdel("themes:team:research", day)
        await one.store.settle(taken.batch, ends)
        assert redis.hmget("themes:team:research", day, day[:7], "job/batch-tag:reserved") == [b"7", b"7", None]
