"""The whole job beside the ways people write it: Celery, dramatiq, taskiq, and one asyncio script.

All ask one light server the same sixteen prompts a destination, with full answers, by way of one Redis server, and keep
profiles in SQLite. Theirs is a task a destination, its calls one after the other, one row and one commit (`jobs/`): no
cache, no validation, no books. BENCH_DESTINATIONS sets a job's size, BENCH_REPEATS how often it runs.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tasks.jobs.events import follow
from tests.benchmarks.figures import knob, ratios, repeats, tell
from tests.benchmarks.jobs.contestant import (
    IN_FLIGHT,
    PEERS,
    STOPPED_SECONDS,
    Contestant,
    JobRun,
    Peer,
    contestant,
    forgiven,
)
from tests.benchmarks.whole import ROLES, Whole, kill, light_server, megabytes_of, posts, whole

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(0)]
CALLS = 16
OURS = "ours"
#: Seconds without a new row or call after which nothing more is waited for: dramatiq takes over after 60.
SILENCE_SECONDS = knob("SILENCE", 75)
DESTINATIONS = knob("DESTINATIONS", 100)
#: The same, once every destination has its row.
DONE_SECONDS = 5.0


def _names(count: int, token: str) -> list[str]:
    return [f"Town {token} {number}" for number in range(count)]


def _with_repeats(names: list[str], percent: int) -> list[str]:
    """As many names, so many percent of which are earlier ones in another spelling."""
    kept = len(names) - len(names) * percent // 100
    return names[:kept] + [f"{name.upper()} " for name in names[: len(names) - kept]]


@pytest.mark.parametrize(("latency_ms", "percent"), [(0, 0), (200, 0), (200, 30)])
def test_a_job_beside_how_people_write_it(tmp_path: Path, latency_ms: int, percent: int) -> None:
    """Whole system. The same names by each in turn, with fresh, warmed processes; a job a contestant a turn.

    Ours is 1 worker and a consumer, with 15 connections. Celery has a process a core at latency 0 and 15 at 200 ms,
    dramatiq a process a core of 8 threads and one of 15, taskiq a process a core of 8 tasks and one of 15, the script
    15 destinations at once. At 200 ms a job has fewer names, a multiple of 15. Those that are repeated are other
    spellings of earlier ones. The first result is ours on the stream of events that `follow` reads, theirs the first
    row, from the start of the command that takes the names.
    """
    count = IN_FLIGHT * max(1, DESTINATIONS // 50) if latency_ms else DESTINATIONS
    runs: dict[str, list[JobRun]] = {OURS: []} | {peer.title: [] for peer in PEERS}
    with whole(tmp_path, latency_ms / 1e3) as system:
        for turn in range(repeats()):
            names = _with_repeats(_names(count, f"{turn}"), percent)
            with system.working(1):
                system.run(_names(IN_FLIGHT, f"warm {turn}"))
                runs[OURS].append(_ours(system, names))
            for peer in [one for one in PEERS if one.title in runs]:
                with forgiven(peer.title, lambda peer=peer: runs.pop(peer.title)):  # type: ignore[misc]
                    runs[peer.title].append(_theirs(peer, system, names, latency_ms / 1e3))
    # And one by which `themes enqueue` sees that the model answers.
    assert {one.calls for one in runs[OURS]} == {CALLS * (count - count * percent // 100) + 1}
    scene = f"{latency_ms} ms" + (f", {percent} % repeated" if percent else "")
    for title, some in runs.items():
        _tell(title, scene, some, runs[OURS])


def _ours(system: Whole, names: list[str]) -> JobRun:
    before = posts(system.env["OPENAI_BASE_URL"])
    run = system.run(names)
    first = next(event for event in follow(run.job_id, redis=system.redis) if event.type == "destination.done")
    return JobRun(
        len(names),
        run.seconds,
        # The stream's id has Redis's clock: from then on a follower sees it.
        int(first.id.partition("-")[0]) / 1e3 - run.began_at,
        posts(system.env["OPENAI_BASE_URL"]) - before,
        sum(megabytes_of(psutil.Process(one.pid)) for one in (*system.workers, system.consumer)),
        {role: run.cpu[role] for role in ROLES},
    )


def _theirs(peer: Peer, system: Whole, names: list[str], latency_seconds: float) -> JobRun:
    with contestant(peer, system, system.env["OPENAI_BASE_URL"], latency_seconds) as other:
        other.start()
        if other.worker_command:
            other.run([f"{name} warm" for name in names[:IN_FLIGHT]])
        return other.run(names)


def _tell(title: str, scene: str, runs: list[JobRun], ours: list[JobRun]) -> None:
    speeds, cpu = [one.destinations / one.seconds for one in runs], [one.cpu_ms for one in runs]
    tell(title, f"{scene}: destinations", speeds, "a second")
    tell(title, f"{scene}: first result after", [one.first_seconds for one in runs], "s")
    tell(title, f"{scene}: LLM calls a destination", [one.calls / one.destinations for one in runs])
    for role in runs[0].cpu:
        tell(
            title, f"{scene}: CPU a destination, {role}", [one.cpu[role] / one.destinations * 1e3 for one in runs], "ms"
        )
    tell(title, f"{scene}: CPU a destination, all of these", cpu, "ms")
    tell(title, f"{scene}: memory of all these but Redis", [one.megabytes for one in runs], "MB")
    if runs is not ours:
        ours_speed = [one.destinations / one.seconds for one in ours]
        tell(title, f"{scene}: destinations a second, ours / theirs", ratios(ours_speed, speeds), "x")
        tell(title, f"{scene}: CPU a destination, theirs / ours", ratios(cpu, [one.cpu_ms for one in ours]), "x")


@dataclass(frozen=True)
class Killed:
    """A contestant that was killed and started again. `standing`: destinations that have a row, and calls until now."""

    began_at: float
    standing: Callable[[], tuple[int, int]]
    last_row_at: Callable[[], float]


def test_what_a_kill_of_everything_leaves(tmp_path: Path) -> None:
    """Whole system. At a third of a job all processes of a contestant get kill -9 and start again; 50 ms a call.

    Redis and the server go on. The end is when every destination has a row, or after 75 s (BENCH_SILENCE) without a row
    and a call. By default what Celery's workers had begun is lost and what they had fetched is due after an hour; what
    taskiq's had is due after 10 minutes, with the next new message; what dramatiq's had is due after 60 s, when one in
    a thousand commands looks for it (BENCH_SILENCE=640 waits for that). The script is given the same names again. One
    call of ours is that of `themes enqueue`.
    """
    count, latency = max(3 * IN_FLIGHT, 2 * DESTINATIONS), 0.05
    names = _names(count, "killed")
    killed: dict[str, Killed] = {}
    with whole(tmp_path, latency) as system, ExitStack() as running:
        killed[OURS] = running.enter_context(_ours_killed(system, names))
        for peer in PEERS:
            with forgiven(peer.title, lambda: None):
                _, url = running.enter_context(light_server(latency))
                other = running.enter_context(contestant(peer, system, url, latency))
                killed[peer.title] = _theirs_killed(other, names)
        for title, (rows, calls) in _ends(killed, count).items():
            tell(title, "killed: destinations without a row", [count - rows], f"of {count}")
            tell(title, "killed: LLM calls made / needed", [calls / (CALLS * count)], "x")
            tell(title, f"killed: LLM calls beyond {CALLS} a row", [calls - CALLS * rows])
            if rows == count:
                ended = killed[title].last_row_at() - killed[title].began_at
                tell(title, "killed: from the start again to the last row", [ended], "s")
            assert title != OURS or rows == count


def _at_a_third(rows: Callable[[], int], count: int) -> None:
    """Wait for a third of the rows, and for half a destination more: rows come in waves, and a wave may end here."""
    deadline = time.monotonic() + 5 * STOPPED_SECONDS
    while rows() < count / 3:
        assert time.monotonic() < deadline, "a third of its rows did not come"
        time.sleep(0.05)
    time.sleep(CALLS / 2 * 0.05)


@contextmanager
def _ours_killed(system: Whole, names: list[str]) -> Iterator[Killed]:
    """Within the body it works again."""

    def rows() -> int:
        return int(system.redis.hget(f"themes:job:{job_id}", "done") or 0)  # type: ignore[arg-type]

    with system.working(1):
        job_id, *_ = system.enqueue(names)
        _at_a_third(rows, len(names))
        kill([*system.workers, system.consumer])
    began_at = time.time()
    system.start_consumer()
    with system.working(1):
        yield Killed(
            began_at,
            lambda: (rows(), posts(system.env["OPENAI_BASE_URL"])),
            lambda: float(system.status(job_id)["finished_at"]),
        )


def _theirs_killed(other: Contestant, names: list[str]) -> Killed:
    other.start()
    other.take(names)
    _at_a_third(lambda: len(other.rows()), len(names))
    other.kill()
    began_at = time.time()
    if other.worker_command:
        other.start()
    else:
        other.take(names)
    return Killed(
        began_at, lambda: (len({*other.rows()}), other.posts()), lambda: float(other.rows("max(ended)")[0][0])
    )


def _ends(killed: dict[str, Killed], wanted: int) -> dict[str, tuple[int, int]]:
    """Of each: rows and calls in the end."""
    seen = dict.fromkeys(killed, (0, 0))
    moved = dict.fromkeys(killed, time.monotonic())
    waiting = set(killed)
    while waiting:
        for title in list(waiting):
            now = killed[title].standing()
            if seen[title] != now:
                seen[title], moved[title] = now, time.monotonic()
            if time.monotonic() - moved[title] > (DONE_SECONDS if now[0] == wanted else SILENCE_SECONDS):
                waiting.remove(title)
        time.sleep(0.2)
    return seen
