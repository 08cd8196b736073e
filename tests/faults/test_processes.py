"""Processes that are killed, frozen, or cut off from Redis in the middle of a job."""

import time

import pytest

from tests.faults.books import Trial, trial
from tests.faults.proxy import Mode
from tests.faults.stack import Stack, ended, until

#: Seconds longer than a lease (2) and its sweep.
BEYOND_A_LEASE = 3.5


@pytest.mark.faults
def test_a_killed_worker_process(stack: Stack, seed: int) -> None:
    with trial(stack, "worker killed", seed) as job:
        job.reach()
        stack.celery(job.random.choice(stack.worker_names)).kill()
    # Killed between the record of a call and its request.
    job.judge(unheard=1)


@pytest.mark.faults
def test_all_workers_killed_with_their_supervisors(stack: Stack, seed: int) -> None:
    with trial(stack, "all workers killed", seed) as job:
        job.reach()
        for name in stack.worker_names:
            stack.kill(name)
        for name in stack.worker_names:
            stack.start(name)
    job.judge(unheard=len(stack.worker_names))


@pytest.mark.faults
def test_a_killed_consumer(stack: Stack, seed: int) -> None:
    with trial(stack, "consumer killed", seed) as job:
        job.reach(0.05, 0.9)
        stack.kill("consumer")
        stack.start("consumer")
    job.judge()


def _quick(place: str, only: str) -> pytest.MarkDecorator:
    """One of several by default, the others with the rest."""
    return pytest.mark.faults if place == only else pytest.mark.soak


#: What the consumer does next or has just done -> how its process dies there.
COMMITS = {
    "before the commit": {"mode": Mode.KILLED_AFTER, "commands": ["XREADGROUP"], "reply_bytes": 400},
    "after the commit": {"mode": Mode.KILLED_BEFORE, "commands": ["MULTI"]},
    "after the announcement": {"mode": Mode.KILLED_BEFORE, "commands": ["XACK"]},
    "after the acknowledgement": {"mode": Mode.KILLED_AFTER, "commands": ["XACK"]},
}


@pytest.mark.parametrize("place", [pytest.param(place, marks=_quick(place, "after the commit")) for place in COMMITS])
def test_a_consumer_killed_at_its_commit(stack: Stack, seed: int, place: str) -> None:
    job = Trial(stack, f"consumer killed {place}", seed)
    stack.proxy.arm("consumer", **COMMITS[place], nth=job.random.randint(1, 6))
    job.enqueue()
    ended(stack.processes["consumer"])
    assert stack.proxy.sprung("consumer")
    stack.start("consumer")
    job.over()
    job.judge()


@pytest.mark.soak
def test_a_killed_producer_is_run_again(stack: Stack, seed: int) -> None:
    job = Trial(stack, "producer killed", seed, count=2000)
    # What it does after its look at the server and before the job is sealed: some 30 commands in batches.
    stack.proxy.arm("producer", mode=Mode.KILLED_BEFORE, nth=job.random.randint(8, 60))
    died = stack.run("enqueue", str(job.path))
    assert died.returncode < 0, died.stderr
    job.enqueue()
    with stack.redis.client() as redis:
        half = {one.decode() for one in redis.smembers("themes:active")} - {job.job_id}
    job.over()
    stack.wait_done(job.job_id)
    # What the first run had enqueued is worked on or not; nobody waits for the rest of it.
    until("the end of the half job", lambda: all(stack.state(one) == "cancelled" for one in half))
    until("a quiet stream", lambda: _is_quiet(stack))
    # Of a cancelled job, what was under way may end without a row.
    job.judge(more_lost=len(half) * len(stack.worker_names) * stack.in_work)


def _is_quiet(stack: Stack) -> bool:
    with stack.redis.client() as redis:
        return not redis.xlen("themes:results")


@pytest.mark.soak
def test_a_worker_frozen_for_longer_than_its_lease(stack: Stack, seed: int) -> None:
    with trial(stack, "worker frozen", seed) as job:
        job.reach()
        with stack.frozen(job.random.choice(stack.worker_names)):
            time.sleep(BEYOND_A_LEASE)
    job.judge()


@pytest.mark.faults
def test_a_worker_cut_off_from_redis_for_longer_than_its_lease(stack: Stack, seed: int) -> None:
    with trial(stack, "network cut", seed) as job:
        job.reach()
        worker = job.random.choice(stack.worker_names)
        stack.proxy.freeze(worker, on=True)
        time.sleep(BEYOND_A_LEASE)
        stack.proxy.freeze(worker, on=False)
        stack.proxy.cut(worker)
    job.judge()


@pytest.mark.soak
def test_a_worker_refused_by_redis_for_longer_than_its_lease(stack: Stack, seed: int) -> None:
    with trial(stack, "connections refused", seed) as job:
        job.reach()
        worker = job.random.choice(stack.worker_names)
        stack.proxy.refuse(worker, on=True)
        time.sleep(BEYOND_A_LEASE)
        stack.proxy.refuse(worker, on=False)
    job.judge()
