"""What the dashboard's process costs, Flower's events on. BENCH_DESTINATIONS sets the job's size.

No threshold on CPU fails it; memory that grows with the job does.
"""

import contextlib
import http.client
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.benchmarks.figures import knob, repeats, tell
from tests.e2e.conftest import Engine, until
from tests.e2e.test_dashboard import _dashboard, _get

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1_800)]
DESTINATIONS = knob("DESTINATIONS", 10_000)
#: A page that is open, and how often its script asks for it.
PAGES: dict[str, tuple[str, float] | None] = {
    "no page open": None,
    "jobs": ("/jobs.json", 2.0),
    "LLM": ("/llm", 3.0),
    "Flower's workers": ("/workers?json=1", 1.0),
}
LOOK_SECONDS, ROUNDS = 10.0, repeats()
#: Of the second half of the job.
MOST_GROWTH_MB = 8.0


@pytest.fixture
def engine(tmp_path: Path, redis_url: str) -> Iterator[Engine]:
    """Processes on the test's own Redis database."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("THEMES_", "OPENAI_", "REDIS"))}
    env |= {"THEMES_STATE_DIR": str(tmp_path / "var"), "REDIS_URL": redis_url}
    made = Engine(tmp_path, env)
    yield made
    made.stop()


def _watch(url: str, job: str, over: threading.Event) -> None:
    """Somebody has the job's page open, and Prometheus scrapes every 5 s."""

    def follow() -> None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/jobs/{job}/events", timeout=60) as events:  # noqa: S310
            for _ in events:
                if over.is_set():
                    return

    def scrape() -> None:
        while not over.wait(5):
            assert _get(f"{url}/metrics")[0] == 200
            assert _get(f"{url}/llm.json")[0] == 200

    for work in (follow, scrape):
        threading.Thread(target=work, daemon=True).start()


def test_the_dashboard_beside_four_workers(engine: Engine) -> None:
    """Whole system. 4 workers and the sandbox at 20 ms; a job's events are followed, and it is scraped every 5 s."""
    engine.sandbox("--latency", "20ms")
    engine.themes("consumer", "consumer")
    url = _dashboard(engine)
    for number in range(4):
        engine.themes(f"w{number}", "worker", "--name", f"w{number}")
    names = "\n".join(f"Town {number}, Utopia" for number in range(DESTINATIONS))
    job = engine.run("enqueue", "-", stdin=names).stdout.strip()
    process = psutil.Process(engine.processes["dashboard"].pid)
    over = threading.Event()
    _watch(url, job, over)
    began, used = time.monotonic(), sum(process.cpu_times()[:2])
    rss: list[float] = []
    done = 0

    def ended() -> bool:
        nonlocal done
        status = engine.status(job)
        done = status["done"] + status["failed"]
        rss.append(process.memory_info().rss / 2**20)
        time.sleep(2)
        return bool(status["state"] == "done")

    until("the job to end", ended, seconds=1_700)
    seconds = time.monotonic() - began
    cpu = sum(process.cpu_times()[:2]) - used
    over.set()
    half = rss[len(rss) // 2 :]
    growth = max(half[-5:]) - half[0]
    case = f"{DESTINATIONS:,} destinations"
    tell(case, "took", [seconds], "s")
    tell(case, "CPU of the dashboard", [cpu / seconds * 100], "% of a core")
    tell(case, "CPU of the dashboard, a destination", [cpu / DESTINATIONS * 1e3], "ms")
    for when, size in (("at the beginning", rss[0]), ("half-way", half[0]), ("at the end", rss[-1])):
        tell(case, f"memory {when}", [size], "MB")
    assert done == DESTINATIONS
    assert growth < MOST_GROWTH_MB


def _look(url: str, pause_seconds: float, over: threading.Event) -> None:
    """Ask for a page as often as its script does, over one connection, as a browser."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port)
    with contextlib.closing(connection):
        while not over.wait(pause_seconds):
            connection.request("GET", where.path + (f"?{where.query}" if where.query else ""))
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200


def test_an_idle_dashboard_and_one_with_a_page_open(engine: Engine) -> None:
    """Whole system. 2 workers after a job; the page's script asks as often as a browser lets it, or nobody looks."""
    engine.sandbox("--latency", "20ms")
    engine.themes("consumer", "consumer")
    url = _dashboard(engine)
    for number in range(2):
        engine.themes(f"w{number}", "worker", "--name", f"w{number}")
    names = "\n".join(f"Town {number}, Utopia" for number in range(100))
    assert engine.run("enqueue", "-", "--wait", stdin=names).returncode == 0
    process = psutil.Process(engine.processes["dashboard"].pid)
    time.sleep(10)  # what the start and the job have left
    for what, page in PAGES.items():
        over = threading.Event()
        looking = threading.Thread(target=_look, args=(url + page[0], page[1], over)) if page else None
        if looking:
            looking.start()
        shares = []
        for _ in range(ROUNDS):
            used, began = sum(process.cpu_times()[:2]), time.monotonic()
            time.sleep(LOOK_SECONDS)
            shares.append(100 * (sum(process.cpu_times()[:2]) - used) / (time.monotonic() - began))
        over.set()
        if looking:
            looking.join()
        tell("CPU of the dashboard", what, shares, "% of a core")
