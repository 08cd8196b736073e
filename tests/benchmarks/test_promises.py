"""What each of seven optimisations gives: each off alone, beside all on and all off, on the same work in turns.

Four lists, one after the other, as teams send them on different days: each has 250 of 300 places, so that 70 % of 1,000
destinations were asked before, a fifth of them in another spelling. Two workers with the usual settings begin anew for
each list. The server answers in real size after lognormal times (median 60 ms, sigma 0.8), fails one request in a
hundred, and a new connection costs 10 ms: real answers take longer, and so do real handshakes. BENCH_DESTINATIONS sets
the destinations of all lists.

Where a promise is missed: a handshake is a tenth of an answer here, and less of a real one. Chunks are small and
fetched when a lane runs dry, so there is little left to steal; where durations have heavy tails stealing pays
(`heavy_tailed_durations`). Batches of one still grow to eight behind a backlog.
"""

import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from redis import Redis

from tasks.jobs.events import follow
from tests.benchmarks.figures import knob, ratios, repeats, tell
from tests.benchmarks.whole import Measured, Whole, megabytes_of, whole

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(0)]
REPEATS = repeats()
LISTS: Final = 4
EACH: Final = max(LISTS, knob("DESTINATIONS", 1_000)) // LISTS
PLACES: Final = EACH * 6 // 5
WORKERS: Final = 2
#: Median seconds of an answer, sigma, seconds of a handshake, share of requests that fail.
SERVER: Final = (0.06, 0.8, 0.01, 0.01)
ON: Final = "all on"
OFF: Final = "all off"
#: What is turned off, and what a competent programmer has then.
TURNED_OFF: Final[dict[str, dict[str, str]]] = {
    # A worker process remembers its own answers, as long as it lives.
    "persistent cache": {"enable_persistent_cache": "false"},
    # A connection a request.
    "connection pool": {"max_requests_per_connection": "1", "llm_connection_pool_min_size": "0"},
    # A transaction a result, by a connection of its own.
    "batched database": {"database_batch_size": "1", "database_connection_pool_size": "2"},
    # Each lane works off its own chunk.
    "work stealing": {"enable_work_stealing": "false"},
    # Whoever waits looks at the database when the job is done.
    "streaming": {"enable_streaming_results": "false"},
    # Nothing is measured.
    "profiling": {"enable_performance_profiling": "false"},
    # Answers, chunks and results as JSON.
    "compression": {"enable_result_compression": "false"},
}


@dataclass
class Outcome:
    """What the four lists cost together."""

    calls: int
    seconds: float
    first_seconds: float
    cpu: dict[str, float]
    worker_megabytes: float
    redis_megabytes: float
    #: Mean seconds of a call with its connection, and of a result in the database; 0.0 where nothing is measured.
    response_seconds: float
    commit_seconds: float


def _lists() -> list[list[str]]:
    """The lists' destinations, as each team spells them."""
    chance = random.Random(3)
    spellings: Sequence[Callable[[str], str]] = (str, str, str, str, lambda name: f"  {name.upper()} ")
    return [
        [chance.choice(spellings)(f"Town {number} by the Sea") for number in chance.sample(range(PLACES), EACH)]
        for _ in range(LISTS)
    ]


def test_promises(tmp_path: Path) -> None:
    """Whole system. The promise of each, and what came of it: "off" is what a competent programmer has without it."""
    every_off = {key: value for some in TURNED_OFF.values() for key, value in some.items()}
    variants = {ON: dict[str, str](), **TURNED_OFF, OFF: every_off}
    found: dict[str, list[Outcome]] = defaultdict(list)
    for turn in range(REPEATS):
        for number, (variant, settings) in enumerate(variants.items()):
            folder = tmp_path / f"{turn}-{number}"
            folder.mkdir()
            found[variant].append(_worked(folder, settings))
    for variant, some in found.items():
        _tell(variant if variant in {ON, OFF} else f"{variant} off", some)
    _tell_promises(found)


def _worked(folder: Path, settings: dict[str, str]) -> Outcome:
    """The four lists by a new system with these settings."""
    env = {f"THEMES_PERFORMANCE_OPTIMIZATION__{key.upper()}": value for key, value in settings.items()}
    jobs, firsts, memory, steps = list[Measured](), list[float](), list[float](), defaultdict[str, float](float)
    with whole(folder, *SERVER, script="uneven_server.py", **env) as system:
        for names in _lists():
            with system.working(WORKERS):
                first = _FirstResult(system)
                jobs.append(system.run(names, on_enqueued=first.watch))
                firsts.append(first.seconds)
                memory.append(sum(megabytes_of(psutil.Process(one.pid)) for one in system.workers))
                for name, seconds in _steps(system, jobs[-1].job_id).items():
                    steps[name] += seconds
        redis: Any = system.redis.info("memory")
    calls = sum(one.calls for one in jobs)
    return Outcome(
        calls=calls,
        seconds=sum(one.wall_seconds for one in jobs),
        first_seconds=sum(firsts) / len(firsts),
        cpu={role: sum(one.cpu[role] for one in jobs) for role in jobs[0].cpu},
        worker_megabytes=max(memory),
        redis_megabytes=redis["used_memory_peak"] / 1e6,
        response_seconds=(steps["llm.call"] + steps["llm.connect"]) / calls,
        commit_seconds=steps["db.commit"] / (LISTS * EACH),
    )


def _steps(system: Whole, job_id: str) -> dict[str, float]:
    """Seconds of each step of a job, as its report has them."""
    report: dict[str, Any] = json.loads(system.said("report", job_id, "--json"))
    return {hop["name"]: hop["total_seconds"] for hop in report["hops"]}


class _FirstResult:
    """How long a user waits for the first result: its event, or the job's end where there are none."""

    def __init__(self, system: Whole) -> None:
        self._system, self._began = system, time.monotonic()
        self._thread: threading.Thread | None = None
        self._seconds = 0.0

    def watch(self, job_id: str) -> None:
        self._thread = threading.Thread(target=self._follow, args=(job_id,))
        self._thread.start()

    def _follow(self, job_id: str) -> None:
        with Redis.from_url(self._system.url) as redis:
            for event in follow(job_id, redis=redis):
                if event.type in {"destination.done", "job.done"}:
                    self._seconds = time.monotonic() - self._began
                    return

    @property
    def seconds(self) -> float:
        assert self._thread
        self._thread.join()
        return self._seconds


def _tell(case: str, some: Sequence[Outcome]) -> None:
    count = LISTS * EACH
    tell(case, "LLM calls", [one.calls for one in some])
    tell(case, "all four lists", [one.seconds for one in some], "s")
    tell(case, "the first result of a list", [one.first_seconds for one in some], "s")
    for role in ("worker", "consumer", "Redis"):
        tell(case, f"CPU a destination, {role}", [one.cpu[role] / count * 1e3 for one in some], "ms")
    tell(case, "memory of both workers", [one.worker_megabytes for one in some], "MB")
    tell(case, "memory of Redis", [one.redis_megabytes for one in some], "MB")
    if all(one.response_seconds for one in some):
        tell(case, "a call with its connection", [one.response_seconds * 1e3 for one in some], "ms")
        tell(case, "a result in the database", [one.commit_seconds * 1e3 for one in some], "ms")


def _tell_promises(found: dict[str, list[Outcome]]) -> None:
    """What is less with it than without, of what was promised; turn by turn."""

    def less(what: str, without: str, figure: Callable[[Outcome], float]) -> None:
        on, off = [figure(one) for one in found[ON]], [figure(one) for one in found[without]]
        tell("with it, less", what, [(1 - ratio) * 100 for ratio in ratios(on, off)], "%")

    less("persistent cache: LLM calls", "persistent cache", lambda one: one.calls)
    less("connection pool: seconds of a response", "connection pool", lambda one: one.response_seconds)
    less("batched database: seconds of a result", "batched database", lambda one: one.commit_seconds)
    less("batched database: CPU of the consumer", "batched database", lambda one: one.cpu["consumer"])
    less("work stealing: seconds of a job", "work stealing", lambda one: one.seconds)
    less("streaming: seconds to the first result", "streaming", lambda one: one.first_seconds)
    less("compression: memory of Redis", "compression", lambda one: one.redis_megabytes)
    less("compression: memory of the workers", "compression", lambda one: one.worker_megabytes)
    less("profiling: CPU of the workers (less than nothing: its cost)", "profiling", lambda one: one.cpu["worker"])
    less("all seven: seconds of a job", OFF, lambda one: one.seconds)
    less("all seven: CPU of all roles", OFF, lambda one: sum(one.cpu.values()))
