"""A refused account through real processes: a few calls, a reason, and the job goes on when it is mended."""

import sqlite3
from typing import Any

import pytest
from aiohttp import web

from tests.e2e.conftest import Engine, until
from tests.support.habits import in_a_thread, refuses

ANSWERED = 20
POOL = 5
ROWS = "name,country\n" + "".join(f"City {number},Country {number % 7}\n" for number in range(24))


class Account:
    """Refused after some answers until it is mended."""

    def __init__(self) -> None:
        self.is_mended = False
        self.refused = 0

    def __call__(self, number: int, _: dict[str, Any]) -> web.StreamResponse | None:
        if self.is_mended or number <= ANSWERED:
            return None
        self.refused += 1
        return refuses(429, "You exceeded your current quota", code="insufficient_quota")


def _env(url: str) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": url,
        "OPENAI_API_KEY": "k",
        "THEMES_MODEL": "sandbox",
        "THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE": str(POOL),
    }


def _states(engine: Engine, job_id: str) -> dict[str, int]:
    with sqlite3.connect(engine.folder / "var" / "themes.db") as database:
        rows = database.execute(
            "SELECT state, COUNT(*) FROM destinations WHERE job_id = ? GROUP BY state", (job_id,)
        ).fetchall()
    return dict(rows)


def _booked(engine: Engine, job_id: str) -> int:
    with sqlite3.connect(engine.folder / "var" / "themes.db") as database:
        ((calls,),) = database.execute("SELECT SUM(llm_calls) FROM attempts WHERE job_id = ?", (job_id,)).fetchall()
    return int(calls)


def test_a_job_whose_account_is_refused_pauses_and_goes_on_when_it_is_mended(stack: Engine) -> None:
    account = Account()
    with in_a_thread(account) as server:
        for name in ("a", "b"):
            stack.themes(name, "worker", "--name", name, **_env(server.url))
        job_id = stack.run("enqueue", "-", stdin=ROWS).stdout.strip()
        status = until("the job to pause", lambda: (found := stack.status(job_id))["paused"] and found)
        assert status["paused"] == "account"
        assert "exceeded your current quota" in status["paused_message"]
        assert status["failed"] == status["partial"] == 0
        said = stack.run("status", job_id).stderr + stack.run("status", job_id).stdout
        assert "themes resume" in said
        assert "quota" in said
        # Two workers; what is under way at each when its third refusal comes, and no more.
        assert account.refused <= 2 * (POOL + 2)
        refused = account.refused
        account.is_mended = True
        assert stack.run("resume", job_id).returncode == 0
        until("the job to end", lambda: stack.status(job_id)["state"] == "done")
        assert _states(stack, job_id) == {"done": 24}
        assert account.refused == refused
        until("the books to be complete", lambda: _booked(stack, job_id) == len(server.asked))


def test_a_run_without_redis_pauses_too(engine: Engine) -> None:
    account = Account()
    with in_a_thread(account) as server:
        env = _env(server.url)
        said = engine.run("run", "-", stdin=ROWS, **env)
        assert said.returncode == 1
        assert "exceeded your current quota" in said.stderr
        assert account.refused <= POOL + 2
        line = next(line for line in said.stderr.splitlines() if "--resume" in line)
        job_id = line.split("--resume", 1)[1].split()[0]
        account.is_mended = True
        again = engine.run("run", "--resume", job_id, **env)
        assert again.returncode == 0, again.stderr
        assert _states(engine, job_id) == {"done": 24}
        assert _booked(engine, job_id) == len(server.asked)


@pytest.mark.parametrize("status", [401, 404])
def test_a_job_that_never_gets_an_answer_says_why_after_a_few_calls(engine: Engine, status: int) -> None:
    with in_a_thread(lambda *_: refuses(status, "no")) as server:
        said = engine.run("run", "-", stdin=ROWS, **_env(server.url))
        assert said.returncode == 1
        assert ("OPENAI_API_KEY" if status == 401 else "OPENAI_BASE_URL") in said.stderr
        assert len(server.asked) <= POOL + 2
