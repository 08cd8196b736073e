"""A job that is bought in batches, and whatever of its stack is killed meanwhile: each prompt is paid for once.

Every call of such a job fails once in every way in `scripts/soak --every-call --batches http`.
"""

import random
import time
from collections.abc import Iterator

import pytest

from tests.faults.stack import Stack, until
from tests.support.forks import Forks

COUNT = 40
SETTINGS = {
    "THEMES_LLM__TIER": "batch",
    "THEMES_LLM__BATCH_FORM_SECONDS": "0.3",
    "THEMES_LLM__BATCH_POLL_SECONDS": "0.5",
    "THEMES_LLM__BATCH_SETTLE_SECONDS": "1",
    "THEMES_LLM__PRICES": "{sandbox: {input_usd: 1, output_usd: 2}}",
    "THEMES_TEAMS__BUDGETS": "{research: {usd_per_day: 100}}",
}
#: Seconds that such a job takes when nothing disturbs it.
USUAL_SECONDS = 4.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Stack]:
    options = ("--batches", "delay=0.8")
    with Stack(tmp_path_factory.mktemp("faults") / "state", forks, settings=SETTINGS, llm_options=options) as made:
        yield made


def _kill(stack: Stack, what: str, chance: random.Random) -> None:
    if what == "worker":
        stack.celery(chance.choice(stack.worker_names)).kill()
    if what == "all":
        for name in (*stack.worker_names, "consumer"):
            stack.kill(name)
    if what == "consumer":
        stack.kill("consumer")
    if what in {"Redis", "all"}:
        stack.redis.kill()
        time.sleep(chance.uniform(0, 0.5))
        stack.redis.start()
    stack.start_again()


def _billed(stack: Stack) -> tuple[int, float]:
    """Requests, and US dollars, that the LLM would send a bill for."""
    billed = stack.ask_llm("/stats")["billed"].get("batch", {})
    usd = (billed.get("prompt_tokens", 0) + 2 * billed.get("completion_tokens", 0)) / 1e6 * 0.5
    return billed.get("requests", 0), usd


@pytest.mark.faults
@pytest.mark.parametrize("what", ["worker", "consumer", "Redis", "all"])
def test_a_kill_buys_nothing_twice_and_leaves_nothing_unread(stack: Stack, seed: int, what: str) -> None:
    chance = random.Random(f"batches/{what}/{seed}")
    requests_before, usd_before = _billed(stack)
    job_id = stack.enqueue(stack.destinations(f"{what} {seed}", COUNT), "--budget", "5", "--team", "research")
    for _ in range(2):
        time.sleep(chance.uniform(0, USUAL_SECONDS / 2))
        _kill(stack, what, chance)
    stack.wait_done(job_id)
    until("a quiet LLM", lambda: not stack.ask_llm("/stats")["batches"].get("in_progress"))
    requests, usd = _billed(stack)
    assert requests - requests_before == COUNT * stack.calls_each, "each prompt is paid for once"
    expected = [(COUNT, COUNT * stack.calls_each, pytest.approx(usd - usd_before))]
    sql = "SELECT sum(state = 'done'), sum(llm_calls), sum(cost_usd) FROM destinations WHERE job_id = ?"
    until("the books to be whole", lambda: stack.query(sql, job_id) == expected, 20)
    with stack.redis.client() as redis:
        money = {name.decode(): amount for name, amount in redis.hgetall(f"themes:job:{job_id}:budget").items()}
        team = {name.decode(): amount for name, amount in redis.hgetall("themes:team:research").items()}
    assert int(money["spent"]) / 1e9 == pytest.approx(usd - usd_before, abs=1e-6)
    assert not [name for name in (*money, *team) if name.endswith(":reserved")], "what was reserved is free again"
    spent_by_team = sum(int(amount) for name, amount in team.items() if len(name) == len("2026-11-29")) / 1e9
    assert spent_by_team == pytest.approx(usd, abs=1e-6)
