"""What may be changed while a worker runs, and how a change is judged and made."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis import Redis

from config.container import ContainerLimits
from config.errors import ConfigError
from config.settings import COMMAND_LINE, known_keys, load, with_value
from config.tuning import TUNABLE, TUNED, changes_of, reloaded, tuned
from scripts.lib.stack import shares_of_memory
from tasks import tuned as kept
from workers.llm.cache.memory import MIB, MemoryTier
from workers.llm.limits.concurrency import AdaptiveConcurrency
from workers.worker.lanes import Lanes
from workers.worker.memory_guard import Bounds, MemoryGuard
from workers.worker.tuning import start_settings

POOL = "performance_optimization.llm_connection_pool_size"
LANES = "performance_optimization.worker_pool_size"
DEFAULTS = load(env={})


# --- judging -------------------------------------------------------------------------------------------------


def test_every_key_that_can_be_changed_is_a_setting() -> None:
    assert set(TUNABLE) <= set(known_keys())


def test_a_change_says_where_it_came_from_and_leaves_the_rest() -> None:
    before = load(env={})
    after = tuned(before, changes_of(["worker_pool_size=3", "llm.requests_per_minute=90.5", "log_level=debug"]))
    assert (after.performance_optimization.worker_pool_size, after.origin(LANES)) == (3, TUNED)
    assert (after.llm.requests_per_minute, after.logging.level) == (90.5, "DEBUG")
    assert tuned(after, {"llm.requests_per_minute": ""}).llm.requests_per_minute is None
    changed = {key for key, value in after.items() if value != dict(before.items())[key]}
    assert changed == {LANES, "llm.requests_per_minute", "logging.level"}
    assert before == load(env={}), "settings are values: the old ones are as they were"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["worker_pool_size"], "expected KEY=VALUE"),
        (["worker_pool_size=1", "performance_optimization.worker_pool_size=2"], "stands twice"),
        (["state_dir=/tmp"], "These can: llm_connection_pool_size"),
        (["llm.api_key=sk-1"], "cannot be changed while workers run"),
        (["worker_pool_size="], "expected a value, got nothing"),
        (["llm_connection_pool_size=4"], "llm_connection_pool_min_size"),
        (["adaptive_concurrency=perhaps"], "expected true or false"),
    ],
)
def test_what_is_no_change_is_refused_with_the_mend(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tuned(load(env={}), changes_of(words))


@hypothesis_settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*TUNABLE, "llm.model"]), st.text(max_size=12), max_size=4))
def test_whatever_the_text_of_a_change_only_a_config_error_is_raised(changes: dict[str, str]) -> None:
    try:
        after = tuned(DEFAULTS, changes)
    except ConfigError:
        return
    assert {key for key in changes if key in TUNABLE} == {k for k, origin in after.origins.items() if origin == TUNED}


def test_a_file_read_again_changes_what_can_be_and_names_what_waits() -> None:
    before = load(env={})
    name = "THEMES_PERFORMANCE_OPTIMIZATION__"
    fresh = load(env={f"{name}WORKER_POOL_SIZE": "5", f"{name}CACHE_TTL_DAYS": "2"})
    after, waiting = reloaded(before, fresh)
    assert waiting == ["performance_optimization.cache_ttl_days"]
    assert (after.performance_optimization.worker_pool_size, after.performance_optimization.cache_ttl_days) == (5, 7)
    back, _ = reloaded(after, before)
    assert (back.performance_optimization.worker_pool_size, back.origin(LANES)) == (12, "default")
    said = with_value(before, LANES, 3, origin=COMMAND_LINE)
    assert reloaded(said, fresh)[0].performance_optimization.worker_pool_size == 3, "the command line wins"
    at_odds = load(env={f"{name}LLM_CONNECTION_POOL_SIZE": "3", f"{name}LLM_CONNECTION_POOL_MIN_SIZE": "1"})
    with pytest.raises(ConfigError, match="llm_connection_pool_min_size"):
        reloaded(before, at_odds)


# --- keeping -------------------------------------------------------------------------------------------------


def test_what_was_said_to_one_worker_wins_until_all_are_told_otherwise(redis: Redis) -> None:
    kept.keep(redis, {LANES: "9", POOL: "20"})
    kept.keep(redis, {LANES: "3"}, worker="a|b@host")
    assert kept.read(redis, "a|b@host") == {LANES: "3", POOL: "20"}
    assert kept.read(redis, "other@host") == {LANES: "9", POOL: "20"}
    kept.keep(redis, {LANES: "4"})
    assert kept.read(redis, "a|b@host") == {LANES: "4", POOL: "20"}
    kept.keep(redis, {POOL: "6"}, worker="a|b@host")
    kept.forget(redis, worker="a|b@host")
    assert kept.read(redis, "a|b@host") == {LANES: "4", POOL: "20"}
    kept.forget(redis)
    assert kept.kept(redis) == []


def test_a_new_worker_starts_with_what_is_kept_and_without_what_no_longer_fits(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    kept.keep(redis, {LANES: "9"})
    settings, changes = start_settings(load(env={}), redis, "w@h")
    assert (settings.performance_optimization.worker_pool_size, changes) == (9, {LANES: "9"})
    kept.keep(redis, {POOL: "2"})
    settings, changes = start_settings(load(env={}), redis, "w@h")
    assert (settings, changes) == (load(env={}), {})
    assert "action=tune_refused" in caplog.text


# --- making --------------------------------------------------------------------------------------------------


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 8), min_size=1, max_size=8),
    steal=st.booleans(),
    count=st.integers(0, 40),
    first=st.integers(1, 8),
)
def test_lanes_come_and_go_and_every_item_runs_exactly_once(
    sizes: list[int], steal: bool, count: int, first: int
) -> None:
    ran: list[int] = []

    async def run() -> None:
        async with Lanes[int](first, steal=steal) as lanes:

            async def work(item: int) -> None:
                await asyncio.sleep(0)
                if item % 3 == 0:
                    lanes.resize(sizes[item % len(sizes)])
                ran.append(item)

            async with asyncio.timeout(180):
                await lanes.run(list(range(count)), work)
                lanes.resize(sizes[-1])
                await lanes.run(list(range(count, count + 10)), work)
            assert sum(lane.executed for lane in lanes.statistics) == count + 10
            assert 0 <= lanes.busy_share <= 1

    asyncio.run(run())
    assert sorted(ran) == list(range(count + 10))


async def test_no_more_is_started_than_there_are_lanes_and_what_is_in_hand_ends() -> None:
    running = most = 0
    gate = asyncio.Event()

    async def work(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    async def settled(size: int) -> None:
        async with asyncio.timeout(180):
            while running != size:
                await asyncio.sleep(0)

    async with Lanes[int](4, steal=True) as lanes:
        run = asyncio.create_task(lanes.run(list(range(60)), work))
        await settled(4)
        lanes.resize(9)
        await settled(9)
        lanes.resize(2)
        assert (lanes.busy, lanes.size) == (9, 2), "nothing in hand is dropped"
        gate.set()
        gate = asyncio.Event()
        await settled(2)
        most = running
        gate.set()
        assert await run == []
    assert most == 2


def test_concurrency_that_was_cut_stays_cut_when_its_bounds_change() -> None:
    adaptive = AdaptiveConcurrency(least=1, most=20)
    adaptive.change(least=1, most=40, enabled=True)
    assert adaptive.limit == 40, "it was whole, and is"
    adaptive.refused(sent_at=1, now=2)
    assert adaptive.limit == 28
    adaptive.change(least=1, most=60, enabled=True)
    assert adaptive.limit == 28
    adaptive.change(least=1, most=10, enabled=True)
    assert adaptive.limit == 10
    adaptive.refused(sent_at=3, now=4)
    adaptive.change(least=9, most=10, enabled=True)
    assert adaptive.limit == 9, "not below the new least"
    adaptive.change(least=1, most=10, enabled=False)
    assert adaptive.limit == 10, "no longer adapted"


def _guard(lanes: Lanes[Any], cache: MemoryTier, *, threshold_bytes: int) -> MemoryGuard:
    return MemoryGuard(Bounds(threshold_bytes, cache.max_bytes, lanes.size), lanes=lanes, cache=cache)


async def test_a_guard_of_this_very_process_shrinks_the_real_cache_and_gives_it_back() -> None:
    cache = MemoryTier(64 * MIB, pressure_bytes=0)
    for number in range(32):
        cache.put(str(number), bytes(MIB))
    async with Lanes[int](4, steal=True) as lanes:
        guard = _guard(lanes, cache, threshold_bytes=1)
        guard.look()
        assert 15 * MIB < cache.size_bytes <= 17 * MIB
        assert guard.report()["memory_pressure"] == "cache"
        assert all(guard.may_take(in_hand) for in_hand in range(10)), "chunks do not wait yet"
        for _ in range(5):
            guard.look()
        assert cache.size_bytes <= MIB
        for _ in range(8):
            guard.look()
        assert (lanes.size, guard.report()["memory_pressure"]) == (1, "wait")
        assert [guard.may_take(in_hand) for in_hand in (0, 1)] == [True, False]
        guard.change(Bounds(2**60, 64 * MIB, 6))
        assert lanes.size == 1, "a change does not undo what memory asks for"
        for _ in range(20):
            guard.look()
        assert (lanes.size, cache.max_bytes, guard.report()["memory_pressure"]) == (6, 64 * MIB, "none")


async def test_a_smaller_cache_and_other_lanes_hold_at_once() -> None:
    cache = MemoryTier(64 * MIB, pressure_bytes=0)
    for number in range(32):
        cache.put(str(number), bytes(MIB))
    async with Lanes[int](4, steal=True) as lanes:
        guard = _guard(lanes, cache, threshold_bytes=2**60)
        guard.change(Bounds(2**60, 8 * MIB, 2))
        assert (cache.size_bytes <= 8 * MIB, lanes.size) == (True, 2)


# --- containers ----------------------------------------------------------------------------------------------


def test_workers_that_share_a_container_get_a_part_of_its_memory_each() -> None:
    small = load(env={}, machine=ContainerLimits(memory_bytes=1024 * MIB))
    name = "THEMES_PERFORMANCE_OPTIMIZATION__"
    assert shares_of_memory(small, 2) == {
        f"{name}MEMORY_PRESSURE_THRESHOLD_MB": "307",
        f"{name}MAX_MEMORY_CACHE_MB": "128",
    }
    assert shares_of_memory(small, 60)[f"{name}MEMORY_PRESSURE_THRESHOLD_MB"] == "64"
    assert shares_of_memory(load(env={}, machine=ContainerLimits()), 2) == {}
