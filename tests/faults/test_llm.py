"""An LLM that is away, that hangs up, and a destination that kills whoever works on it."""

import time

import pytest

from tests.faults.books import Trial, trial
from tests.faults.proxy import Mode
from tests.faults.stack import Stack


@pytest.mark.soak
def test_connections_to_the_llm_cut(stack: Stack, seed: int) -> None:
    with trial(stack, "connections to the LLM cut", seed) as job:
        job.reach()
        cut = 0
        for _ in range(3):
            cut += stack.proxy.cut("llm")
            time.sleep(0.2)
    job.judge(unheard=cut)


@pytest.mark.soak
def test_an_llm_that_is_away_for_ten_seconds(stack: Stack, seed: int) -> None:
    with trial(stack, "LLM away for 10 s", seed) as job:
        job.reach()
        asked = job.asked()
        stack.kill("llm")
        time.sleep(10)
        stack.start_llm()
        # The new process counts from 0.
        job.asked_before = -asked
    job.judge(more_lost=stack.in_work, unheard=2 * stack.in_work)


@pytest.mark.soak
def test_a_destination_that_kills_its_worker_every_time(own_stack: Stack, seed: int) -> None:
    """It fails as WorkerLostError after `work.max_deliveries`; nobody else's work is lost with it."""
    job = Trial(own_stack, "deadly destination", seed, count=100)
    name = f"{job.label} {job.random.randrange(job.count)}"
    own_stack.proxy.arm("llm", mode=Mode.KILLED_BEFORE, containing=f'{name}\\"', again=True)
    job.enqueue()
    job.over()
    # Each death takes a call with it that the proxy has got and the LLM has not.
    books = job.judge(failures=[name], unheard=3 * own_stack.calls_each, seconds=240)
    assert books.failures == {name: "WorkerLostError"}
    assert own_stack.deaths() == 3, "as often as work.max_deliveries says, and no more"
