"""What the dashboard costs while 4 workers make 10,000 destinations: Flower's events on, watched and scraped.

python -m pytest -m benchmark -s tests/benchmarks/test_dashboard.py
"""

import contextlib
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import Engine, until
from tests.e2e.test_dashboard import _dashboard, _get

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1_800)]
DESTINATIONS = int(os.environ.get("THEMES_BENCH_DESTINATIONS", "10000"))
#: Part of one core, over the whole job.
MOST_CPU = 0.10
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


def test_the_dashboard_takes_a_tenth_of_a_core_and_its_memory_is_flat(engine: Engine) -> None:
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
    print(
        f"\n{DESTINATIONS} destinations in {seconds:.0f} s: dashboard {cpu:.1f} s CPU = {cpu / seconds:.1%} of a core, "
        f"RSS {rss[0]:.0f} -> {half[0]:.0f} -> {rss[-1]:.0f} MB"
    )
    assert done == DESTINATIONS
    assert cpu / seconds < MOST_CPU
    assert growth < MOST_GROWTH_MB
