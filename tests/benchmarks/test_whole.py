"""Processes as users start them, a light server with full answers: 25 themes a destination, a profile of about 30 KB.

Sixteen prompts a destination are sent and answered in real size. BENCH_DESTINATIONS sets a job's size, BENCH_REPEATS
how often it runs. CPU is user and system time of a role's processes: other work on the machine matters less for it than
for what is measured by the clock.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.figures import knob, ratios, repeats, tell
from tests.benchmarks.full_prompts import body_of, prompts_about
from tests.benchmarks.whole import Measured, tell_whole, whole

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(0)]
REPEATS = repeats()
CALLS = 16
LATENCY_SECONDS = 0.2
#: Destinations that warm a new worker, before what is measured.
WARM = 20


def _destinations(usual: int) -> int:
    return knob("DESTINATIONS", usual)


def _names(count: int, token: str) -> list[str]:
    return [f"Town {token}{number}" for number in range(count)]


def test_whole_uncached(tmp_path: Path) -> None:
    """Whole system. Nothing is cached and the server answers at once: what a call costs."""
    count = _destinations(300)
    with whole(tmp_path) as system, system.working(1):
        if count > WARM:
            system.run(_names(min(WARM, count), "warm "))
        measured = [system.run(_names(count, f"{turn} ")) for turn in range(REPEATS)]
        assert all(one.calls == CALLS * count for one in measured)
        tell_whole("nothing cached, latency 0, 1 worker", measured)
        profile, stored = system.profile_bytes()
        tell("nothing cached, latency 0, 1 worker", "a profile, as JSON", [profile / 1e3], "KB")
        tell("nothing cached, latency 0, 1 worker", "the database, a profile", [stored / 1e3], "KB")


def test_whole_cached(tmp_path: Path) -> None:
    """Whole system. A second job over the same destinations, by a new worker: every answer is in Redis."""
    count = _destinations(1_000)
    measured: list[Measured] = []
    with whole(tmp_path) as system:
        with system.working(2, llm_connection_pool_size=32):
            system.run(_names(count, "") + _names(WARM, "warm "))
        for _ in range(REPEATS):
            with system.working(1):
                system.run(_names(WARM, "warm "))
                measured.append(system.run(_names(count, "")))
    assert all((one.calls, one.cached) == (0, CALLS * count) for one in measured)
    tell_whole("everything cached, 1 worker", measured)


@pytest.mark.parametrize("in_flight", [64, 512])
def test_whole_in_flight(tmp_path: Path, in_flight: int) -> None:
    """Whole system. Two workers at 200 ms a call, beside two processes of bare aiohttp that ask the same server.

    The ideal is the number of calls * 200 ms / calls in flight.
    """
    turns = 40
    count = _destinations(in_flight * turns // CALLS)
    case = f"{in_flight} in flight at 200 ms, 2 workers"
    ideal = count * CALLS * LATENCY_SECONDS / in_flight
    shares: list[float] = []
    floors: list[float] = []
    floor_ms: list[float] = []
    measured: list[Measured] = []
    bodies = tmp_path / "bodies.json"
    bodies.write_text(json.dumps([body_of(one).decode() for number in range(50) for one in prompts_about(number)]))
    each = in_flight // 2
    with (
        whole(tmp_path, LATENCY_SECONDS) as system,
        system.working(2, llm_connection_pool_size=each, worker_pool_size=max(12, each // 4)),
    ):
        system.run(_names(in_flight // 2, "warm "))
        for turn in range(REPEATS):
            took, cpu = _bare(system.env["OPENAI_BASE_URL"], each, count * CALLS // 2, bodies)
            floors.append(ideal / took)
            floor_ms.append(cpu / (count * CALLS) * 1e3)
            measured.append(system.run(_names(count, f"{turn} ")))
            shares.append(ideal / measured[-1].seconds)
    tell_whole(case, measured)
    tell(case, "CPU a call, bare aiohttp", floor_ms, "ms")
    tell(case, "share of the ideal, 2 bare aiohttp processes", floors, "x")
    tell(case, "share of the ideal", shares, "x")
    tell(case, "share of the ideal, beside bare aiohttp", ratios(shares, floors), "x")
    worker_ms = [one.cpu["worker"] / one.calls * 1e3 for one in measured]
    tell(case, "CPU a call, worker / bare aiohttp", ratios(worker_ms, floor_ms), "x")


def _bare(url: str, in_flight: int, count: int, bodies: Path) -> tuple[float, float]:
    """The seconds of the slower of two processes, and the CPU of both."""
    command = [sys.executable, str(Path(__file__).with_name("bare_client.py")), url, str(in_flight), str(count)]
    pipe = subprocess.PIPE
    two = [subprocess.Popen([*command, str(bodies)], stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for one in two:
        assert one.stdout
        assert one.stdout.readline() == "ready\n"
    for one in two:
        assert one.stdin
        one.stdin.write("go\n")
        one.stdin.flush()
    said: list[list[float]] = [json.loads(one.communicate()[0]) for one in two]
    return max(wall for wall, _ in said), sum(cpu for _, cpu in said)


def test_whole_more_workers(tmp_path: Path) -> None:
    """Whole system. 1, 2, 4 and 8 workers of 15 connections at 200 ms: which share of the ideal each keeps."""
    each = _destinations(120)
    with whole(tmp_path, LATENCY_SECONDS) as system:
        for workers in (1, 2, 4, 8):
            count = each * workers
            with system.working(workers):
                system.run(_names(12 * workers, f"warm {workers} "))
                measured = [system.run(_names(count, f"{workers} {turn} ")) for turn in range(REPEATS)]
            case = f"{workers} workers of 15 connections at 200 ms"
            tell_whole(case, measured)
            ideal = count * CALLS * LATENCY_SECONDS / 15 / workers
            tell(case, "share of the ideal", [ideal / one.seconds for one in measured], "x")
