"""Redis that is killed, restarted again and again, full, empty, away, or drops its connections."""

import time
from collections.abc import Iterator

import pytest
from redis import Redis

from tests.faults.books import Trial, trial
from tests.faults.stack import Stack, ended, until
from tests.support.forks import Forks


def _cut_all(redis: Redis) -> None:
    redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@pytest.mark.faults
def test_redis_killed_with_its_append_only_file(stack: Stack, seed: int) -> None:
    with trial(stack, "Redis killed", seed) as job:
        job.reach()
        stack.redis.kill()
        time.sleep(job.random.uniform(0, 1))
        stack.redis.start()
    job.judge()


@pytest.mark.faults
def test_every_connection_cut_fifteen_times(stack: Stack, seed: int) -> None:
    with trial(stack, "connections cut 15 times", seed, count=280) as job, stack.redis.client() as redis:
        job.reach(0.05, 0.2)
        for _ in range(15):
            _cut_all(redis)
            time.sleep(job.random.uniform(0.05, 0.35))
    job.judge()


@pytest.mark.soak
def test_six_restarts_in_twenty_seconds(stack: Stack, seed: int) -> None:
    with trial(stack, "6 Redis restarts", seed, count=1500) as job:
        for _ in range(6):
            time.sleep(job.random.uniform(2.5, 3.3))
            stack.redis.kill()
            time.sleep(job.random.uniform(0, 0.5))
            stack.redis.start()
    job.judge()


@pytest.mark.soak
def test_redis_out_of_memory(stack: Stack, seed: int) -> None:
    """What may be evicted is evicted first (volatile-lru); then every write is refused, until there is room again."""
    with trial(stack, "Redis out of memory", seed) as job:
        job.reach()
        stack.redis.config("maxmemory", 1_000_000)
        time.sleep(job.random.uniform(2, 5))
        stack.redis.config("maxmemory", 0)
    job.judge()


def _said(stack: Stack, role: str) -> int:
    """Bytes in a role's log."""
    path = stack.folder / "logs" / f"{role}.log"
    return path.stat().st_size if path.exists() else 0


@pytest.mark.soak
def test_redis_away_for_half_a_minute_while_people_watch(stack: Stack, seed: int) -> None:
    dashboard = stack.start("dashboard", "dashboard", "--port", "0")
    with trial(stack, "Redis away for 30 s", seed, count=1000) as job:
        said = _said(stack, "watch")
        watch = stack.start("watch", "watch", job.job_id)
        until("`themes watch` to say something", lambda: _said(stack, "watch") > said)
        job.reach()
        stack.redis.kill()
        time.sleep(30)
        stack.redis.start()
    job.judge()
    assert ended(watch) == 0, "`themes watch` ends with the job, which it has followed all the while"
    assert dashboard.poll() is None, "the dashboard goes on"
    dashboard.terminate()
    ended(dashboard)


@pytest.mark.soak
def test_a_producer_that_finds_no_redis_says_so_and_can_be_run_again(stack: Stack, seed: int) -> None:
    job = Trial(stack, "Redis away for the producer", seed, count=50)
    stack.proxy.refuse("producer", on=True)
    with pytest.raises(AssertionError, match="cannot be reached|does not answer"):
        job.enqueue()
    stack.proxy.refuse("producer", on=False)
    job.enqueue()
    job.over()
    job.judge()


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Stack]:
    """A stack whose Redis keeps nothing."""
    with Stack(tmp_path_factory.mktemp("forgetful") / "state", forks, aof=False) as made:
        yield made


@pytest.mark.soak
def test_a_redis_that_forgets_everything_and_a_new_job(forgetful: Stack, seed: int) -> None:
    lost = Trial(forgetful, "Redis empty: the old job", seed)
    lost.enqueue()
    lost.reach()
    forgetful.redis.kill()
    forgetful.redis.start()
    until("the workers' heartbeats", forgetful.are_workers_alive)
    with trial(forgetful, "Redis empty: a new job", seed) as job:
        pass
    # What was under way of the job that is gone is asked or booked beside this one.
    beside = len(forgetful.worker_names) * forgetful.in_work
    job.judge(more_lost=beside, unheard=2 * lost.count)


@pytest.mark.soak
def test_a_redis_that_forgets_everything_and_the_old_job_retried(forgetful: Stack, seed: int) -> None:
    with trial(forgetful, "Redis empty: the old job retried", seed) as job:
        job.reach()
        forgetful.redis.kill()
        forgetful.redis.start()
        until("the workers' heartbeats", forgetful.are_workers_alive)
        said = forgetful.run("retry", job.job_id)
        assert said.returncode == 0, said.stderr
    job.judge(more_lost=2 * forgetful.in_work)
