"""Whatever everything waits for is said: by the verbs that show a job, by doctor and on the pages, in one wording."""

import asyncio
import contextlib
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from redis import Redis

from tasks import keys
from tests.e2e.conftest import DEADLINE, Engine, until
from tests.e2e.test_dashboard import _dashboard, _get
from tests.support.browser import page
from tests.support.forks import Piped

#: Asks for 50 minutes, and a call tries it each second or two.
WRONG = ["429=1,retry_after=3000"]
SOON = {"THEMES_LLM__PROBE_SECONDS": "1"}
SAID = "rate limited by the server llm (429: 'Rate limit reached for requests.'), next try in "
HEADER = "(it said Retry-After: 3000)"


def _file(folder: Path, count: int) -> str:
    path = folder / "cities.csv"
    path.write_text("name\n" + "".join(f"City {number}\n" for number in range(count)))
    return str(path)


def _read_until(process: Piped, words: str) -> str:
    """The first line of standard error with these words."""
    for line in process.stderr:
        if words in line:
            return line
    pytest.fail(f"it ended without a word of {words!r}")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (WRONG[0], SAID),
        ("500=1", "the server llm answers with errors ("),
        ("error200=1", "the server llm answers with errors ("),
        ("503=1", "the server llm is away ("),
    ],
)
def test_a_run_says_what_it_waits_for_and_after_ctrl_c_asks_for_no_workers(
    fault: str, words: str, engine: Engine
) -> None:
    engine.sandbox("--latency", "0")
    engine.ask_sandbox("/faults", [fault])
    process = engine.piped("run", _file(engine.folder, 12))
    line = _read_until(process, words)
    assert "waiting: " in line
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, err
    assert f"to go on: themes run --resume {out.strip()}" in err
    assert "worker" not in err


def test_a_run_whose_server_asks_for_far_too_long_goes_on_when_one_call_is_answered(engine: Engine) -> None:
    engine.sandbox("--latency", "0")
    engine.ask_sandbox("/faults", WRONG)
    process = engine.piped("run", _file(engine.folder, 12), **SOON)
    assert HEADER in _read_until(process, SAID)
    engine.ask_sandbox("/faults", [])
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err


def test_a_terminal_shows_what_is_waited_for(engine: Engine) -> None:
    engine.sandbox("--latency", "0")
    engine.ask_sandbox("/faults", WRONG)
    ours, its = pty.openpty()
    env = {**engine.env, **SOON, "COLUMNS": "200", "LINES": "50", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.main", "run", _file(engine.folder, 4)],
        env=env, stdin=its, stdout=subprocess.DEVNULL, stderr=its, start_new_session=True,
    )  # fmt: skip
    engine.processes["run"] = process
    os.close(its)
    shown = b""

    def has_said() -> bool:
        nonlocal shown
        if select.select([ours], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # it has ended, and closed its side
                shown += os.read(ours, 65_536)
        return SAID.encode() in re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown)

    until("the terminal to show it", has_said)
    engine.ask_sandbox("/faults", [])
    while process.poll() is None:
        has_said()
    os.close(ours)
    assert process.returncode == 0


async def test_every_place_names_the_wait_its_end_and_who_said_so(stack: Engine, chromium: str) -> None:
    def begin() -> str:
        stack.ask_sandbox("/faults", WRONG)
        stack.themes("w", "worker", "--name", "w", THEMES_LLM__PROBE_SECONDS="30")
        job_id = stack.run("enqueue", _file(stack.folder, 20)).stdout.strip()
        until("the job to say what it waits for", lambda: stack.status(job_id)["waiting_for"])
        return job_id

    job_id = await asyncio.to_thread(begin)
    status = await asyncio.to_thread(stack.status, job_id)
    assert status["waiting_for"].startswith(SAID)
    assert status["waiting_for"].endswith(HEADER)
    assert status["wait"].items() >= {"kind": "server_limit", "endpoint": "llm", "header": "Retry-After: 3000"}.items()
    assert status["wait"]["until"] - status["wait"]["since"] > 2000

    def told(*verb: str) -> str:
        said = stack.run(*verb)
        return said.stdout + said.stderr

    for verb in (("status", job_id), ("status",), ("top", "--once"), ("doctor",)):
        assert SAID in await asyncio.to_thread(told, *verb), verb
    watching = stack.piped("watch", job_id)
    assert HEADER in await asyncio.to_thread(_read_until, watching, SAID)
    url = await asyncio.to_thread(_dashboard, stack)
    listed = msgspec.json.decode((await asyncio.to_thread(_get, f"{url}/jobs.json"))[1])
    assert listed[0]["tag"] == "waiting"
    async with page(chromium) as tab:
        for place in ("/llm", "/jobs", f"/jobs/{job_id}"):
            await tab.open(f"{url}{place}")
            await tab.until(f"document.body.innerText.includes({msgspec.json.encode(SAID).decode()})")
        await asyncio.to_thread(_restarted_and_over, stack)
        # The page follows by itself.
        await tab.until("document.getElementById('state').textContent === 'done'")
    await asyncio.to_thread(watching.communicate, DEADLINE)
    assert watching.returncode == 0
    assert (await asyncio.to_thread(stack.status, job_id))["waiting_for"] is None


def _restarted_and_over(stack: Engine) -> None:
    """Without a worker doctor still knows; a new one waits too, until one call of it is answered."""
    stack.end("w", kill=True)
    asked = stack.ask_sandbox("/stats")["requests"]
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        (worker,) = redis.zrange(keys.WORKERS, 0, -1)
        redis.delete(keys.worker(worker.decode()))
        assert SAID in stack.run("doctor").stdout
        stack.themes("w2", "worker", "--name", "w2", **SOON)
        new = keys.worker(f"w2@{socket.gethostname()}")
        until("the new worker to know", lambda: b"3000" in (redis.hget(new, "waiting_for") or b""))
    assert stack.ask_sandbox("/stats")["requests"] <= asked + 6, "a probe or two, and doctor's own question"
    stack.ask_sandbox("/faults", [])
