"""The LLM layer beside libraries that people ask LLMs with, and beside bare aiohttp, in one run.

Each contestant is a process of its own in an environment of its own (`peers/NAME.txt` pins it), written as its
documentation shows (`peers/ask_NAME.py` says how), and asks the same light server the same sixteen prompts in real
size. CPU is user and system time of that process; Redis and the server have theirs. A peer that fails has no figures;
the run prints why.
"""

import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.figures import knob, ratios, repeats, tell
from tests.benchmarks.peers.contest import ALL, BARE, OPEN_SECONDS, Contestant, Ring, Running, may_fail
from tests.benchmarks.whole import light_server

#: The first use makes environments, which takes minutes: that time is the fixtures'.
pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900, func_only=True)]
ROUNDS = repeats()
CALLS = knob("DESTINATIONS", 30) * 16
LATENCY_SECONDS = 0.2
#: A measurement of efficiency takes so much CPU, as warming up took it, within so many calls for each in flight.
CPU_SECONDS, TURNS = 6.0, (2, 10)
PER_MINUTE = 600
#: Seconds over which calls are counted, and that the clock's minute must still have: some count by it.
LIMIT_SECONDS, LEFT_SECONDS = 8.0, 14.0
#: Requests that the limit allows in this time, as a contestant understands it.
PACE = PER_MINUTE / 60 * LIMIT_SECONDS
ALLOWED = {"pace": PACE, "bucket": PER_MINUTE + PACE, "minute": PER_MINUTE}
TOGETHER = 64

Figures = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def environments() -> None:
    """Make those that are not there; which cannot be made is said."""
    for contestant in ALL:
        with may_fail(contestant):
            assert contestant.python


@pytest.fixture
def ring(request: pytest.FixtureRequest, redis_url: str, tmp_path: Path) -> Iterator[Ring]:
    """A server that answers after as many seconds as the test says."""
    with light_server(getattr(request, "param", 0.0)) as (_, url):
        yield Ring(url, redis_url, tmp_path)


def in_turns(
    warm: Iterable[Running], order: Callable[[Running, int], dict[str, object]]
) -> dict[Contestant, list[Figures]]:
    """What each contestant needed for its order, turn by turn; only of those that carried all of them out."""
    found: dict[Contestant, list[Figures]] = defaultdict(list)
    for turn in range(ROUNDS):
        for running in warm:
            if len(found[running.contestant]) == turn:
                with may_fail(running.contestant):
                    found[running.contestant].append(running.carry_out(**order(running, turn)))
    return {contestant: figures for contestant, figures in found.items() if len(figures) == ROUNDS}


def cpu_ms(figures: list[Figures]) -> list[float]:
    return [one["cpu"] / one["answered"] * 1e3 for one in figures]


def tell_cpu(found: dict[Contestant, list[Figures]]) -> None:
    """CPU a call, and turn by turn how many times bare aiohttp's it is."""
    for contestant in ALL:
        tell(contestant.name, "validates its answers (1 is yes)", [float(contestant.validates)])
        if contestant in found:
            tell(contestant.name, "CPU a call", cpu_ms(found[contestant]), "ms")
            tell(contestant.name, "CPU / bare aiohttp's", ratios(cpu_ms(found[contestant]), cpu_ms(found[BARE])), "x")


def test_cpu_of_a_call_beside_peers(ring: Ring) -> None:
    """Layer: from a prompt to a decoded answer of 0.1 to 4.6 KB, latency 0, 64 in flight, nothing out of a cache.

    Ours writes to its cache and keeps to limits that are far away, as it does in a worker; peers do neither.
    """
    with ring.opened(ALL) as warm:
        tell_cpu(in_turns(warm, lambda _, turn: {"first": turn * CALLS, "count": CALLS}))


@pytest.mark.parametrize("ring", [LATENCY_SECONDS], indirect=True, ids=["200 ms"])
@pytest.mark.parametrize("in_flight", [64, 512])
def test_efficiency_at_200_ms_beside_peers(ring: Ring, in_flight: int) -> None:
    """Layer: one process, answers of 0.1 to 4.6 KB. The ideal is calls * 200 ms / calls in flight.

    Each makes as many calls as some seconds of CPU allow: two to ten for each that is in flight.
    """
    counts: dict[Contestant, int] = {}
    with ring.opened(ALL, in_flight) as warm:
        for running, warming in warm.items():
            turns = round(CPU_SECONDS / warming["cpu"] * warming["answered"] / in_flight)
            counts[running.contestant] = in_flight * max(TURNS[0], min(TURNS[1], turns))

        def order(running: Running, turn: int) -> dict[str, object]:
            return {"first": turn * 1_000_000, "count": counts[running.contestant]}

        found = in_turns(warm, order)
    for contestant, figures in found.items():
        shares = [one["answered"] * LATENCY_SECONDS / in_flight / one["wall"] for one in figures]
        tell(contestant.name, "share of the ideal", shares, "x")
    tell_cpu(found)


def test_answers_out_of_the_cache_beside_peers(ring: Ring) -> None:
    """Layer: a new process asks what another one has asked, in turns; 64 in flight, answers of 0.1 to 4.6 KB.

    Ours, litellm and langchain keep answers in Redis; lm-deluge (SQLite), flexllm (LMDB), instructor (diskcache) and
    curator (a whole run's rows) in files of one machine. The openai SDK and aiohttp have no cache.
    """
    with_cache = [one for one in ALL if one.cache]
    with ring.opened(with_cache, cached=True) as warm:
        filled = in_turns(warm, lambda _, turn: {"first": turn * CALLS, "count": CALLS})
    with ring.opened(filled, cached=True) as warm:
        before = ring.posted()
        found = in_turns(warm, lambda _, turn: {"first": turn * CALLS, "count": CALLS})
        asked_again = ring.posted() - before
    print(f"calls that reached the server though their answers were kept: {asked_again}")
    for contestant in ALL:
        tell(contestant.name, "has a cache (1 is yes)", [float(bool(contestant.cache))])
    for contestant, figures in found.items():
        tell(contestant.name, "CPU an answer", cpu_ms(figures), "ms")
        tell(contestant.name, "answers", [one["answered"] / one["wall"] for one in figures], "a second")


@pytest.mark.parametrize("ring", [LATENCY_SECONDS], indirect=True, ids=["200 ms"])
def test_equal_prompts_at_once_beside_peers(ring: Ring) -> None:
    """Layer: one prompt 64 times at once, in one process and in two, each with its cache; the server counts.

    1 call is the least, 64 and 128 are all. Two processes of curator cannot run equal rows in one folder at once: one
    ends with an error.
    """
    for contestant in ALL:
        with may_fail(contestant), ring.opened([contestant] * 2, cached=True) as warm:
            for case, some in (("one process", list(warm)[:1]), ("each of two processes", list(warm))):
                counts = [calls_for_equal_prompts(ring, some, f"{case} {turn}") for turn in range(ROUNDS)]
                tell(contestant.name, f"calls for {TOGETHER} equal prompts in {case}", counts)


def calls_for_equal_prompts(ring: Ring, some: list[Running], name: str) -> float:
    before = ring.posted()
    for running in some:
        running.begin(first=zlib.crc32(name.encode()), count=TOGETHER, same=True)
    for running in some:
        running.figures()
    return float(ring.posted() - before)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_shared_rate_limit_beside_peers(ring: Ring, processes: int) -> None:
    """Layer: 600 requests a minute, set as each library's documentation says, in 1, 2 and 4 processes. Measured once.

    The server counts what comes in 8 seconds, beside what the limit allows in that time. Ours shares the limit through
    Redis and paces it; litellm's Router counts the clock's minutes in Redis, and all 600 may come at once. The others
    limit each process: langchain, flexllm and curator pace, lm-deluge begins with 600 at once. The openai SDK,
    instructor and aiohttp have no limit.
    """
    case = "1 process" if processes == 1 else f"{processes} processes"
    for contestant in (one for one in ALL if one.limit):
        with may_fail(contestant), ring.opened([contestant] * processes, per_minute=PER_MINUTE) as warm:
            if len(warm) == processes:
                calls = calls_under_a_limit(ring, list(warm))
                tell(case, f"{contestant.name}: calls / those allowed", [calls / ALLOWED[contestant.limit]], "x")


def calls_under_a_limit(ring: Ring, warm: list[Running]) -> int:
    time.sleep(max(0.0, LEFT_SECONDS - (60 - time.time() % 60)) % 60)
    before = ring.posted()
    for at, running in enumerate(warm):
        running.begin(first=at * 1_000_000)
    deadline = time.monotonic() + OPEN_SECONDS
    while ring.posted() == before and time.monotonic() < deadline:
        time.sleep(0.01)
    if warm[0].contestant.limit == "pace":
        time.sleep(1)  # a second's worth may go at once
        before = ring.posted()
    time.sleep(LIMIT_SECONDS)
    calls = ring.posted() - before
    for running in warm:
        running.kill()
    return calls
