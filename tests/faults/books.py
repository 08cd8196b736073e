"""The books of a job: what must be true of its rows, its counters, its calls and Redis, whatever was killed.

`Trial` runs one job under one fault and judges its books. Where FAULT_REPORT names a file, each trial adds a line of
JSON to it, for the table of `scripts/soak --each`.
"""

import contextlib
import json
import os
import random
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from redis import Redis

from tasks import keys
from tests.faults.stack import Stack, until

#: What of a job may stay in Redis when it is done: its entry and what watchers read, all of it with a TTL.
STAYS = {"events", "budget", "measurements"}


@dataclass(frozen=True, slots=True)
class Books:
    """What was found of one job."""

    rows: int
    lost: int
    double: int
    failures: dict[str, str]
    calls: int
    asked: int

    @property
    def unbooked(self) -> int:
        """Calls that the LLM has seen and nobody has booked."""
        return self.asked - self.calls


def read(stack: Stack, job_id: str, count: int, *, calls_before: int = 0, asked: int = 0) -> Books:
    """The books of a job of `count` destinations."""
    names = [row[0] for row in stack.query("SELECT destination_id FROM profiles WHERE job_id = ?", job_id)]
    failures = dict(
        stack.query(
            "SELECT d.name, f.error_class FROM failures f JOIN destinations d USING (job_id, destination_id) "
            "WHERE job_id = ?",
            job_id,
        )
    )
    both = stack.query(
        "SELECT count(*) FROM profiles JOIN failures USING (job_id, destination_id) WHERE job_id = ?", job_id
    )[0][0]
    rows = len(names) + len(failures)
    return Books(
        rows=rows,
        lost=count - (len(set(names)) + len(failures) - both),
        double=len(names) - len(set(names)) + both,
        failures=failures,
        calls=calls(stack) - calls_before,
        asked=asked,
    )


def calls(stack: Stack) -> int:
    """Calls in the books of all jobs together."""
    with contextlib.suppress(Exception):
        return int(stack.query("SELECT coalesce(sum(llm_calls), 0) FROM jobs")[0][0])
    return 0


def counters_equal_sums(stack: Stack, job_id: str) -> None:
    """The job's row says what the rows of its destinations, runs and failures add up to."""
    job = stack.query("SELECT state, total, done, failed, llm_calls FROM jobs WHERE job_id = ?", job_id)[0]
    sums = stack.query(
        "SELECT count(*), sum(state = 'done'), sum(state = 'failed'), sum(llm_calls) FROM destinations "
        "WHERE job_id = ?",
        job_id,
    )[0]
    runs = stack.query("SELECT sum(llm_calls) FROM attempts WHERE job_id = ?", job_id)[0][0]
    assert job == ("done", *sums)
    assert job[-1] == runs


def nothing_is_left(redis: Redis, job_id: str) -> None:
    """No lease, chunk, finished-set, carried cost or owner stays behind, and nothing of the stream is unread."""

    def left() -> set[str]:
        return {key.decode().split(":")[3] for key in redis.scan_iter(f"{keys.job(job_id)}:*", count=1000)} - STAYS

    def unread() -> int:
        return int(redis.xpending(keys.RESULTS, keys.GROUP)["pending"]) + int(redis.xlen(keys.RESULTS))

    until(f"nothing of the job to be left in Redis, not {left()}", lambda: not left(), 180)
    until(f"an empty results stream, not {unread()}", lambda: unread() == 0, 180)
    assert job_id.encode() not in redis.smembers(keys.ACTIVE)
    forever = [key for key in redis.scan_iter(f"{keys.job(job_id)}*", count=1000) if redis.ttl(key) == -1]
    assert not forever, forever


class Trial:
    """One job under one fault."""

    def __init__(self, stack: Stack, fault: str, seed: int, *, count: int = 200) -> None:
        self.stack, self.fault, self.seed, self.count = stack, fault, seed, count
        self.random = random.Random(f"{fault}/{seed}")
        stack.heal()
        stack.end_jobs()
        self.label = f"{fault} {seed} {time.time_ns()}"
        self.path = stack.destinations(self.label, count)
        until("the LLM to be idle", lambda: stack.ask_llm("/stats")["in_flight"] <= 1)
        self.calls_before, self.asked_before = calls(stack), stack.asked()
        self.deaths_before = stack.deaths()
        self.job_id = ""
        self.over_at = 0.0

    def enqueue(self) -> None:
        """Make the job."""
        self.job_id = self.stack.enqueue(self.path)

    def asked(self) -> int:
        """Requests that the LLM has seen from this job."""
        return self.stack.asked() - self.asked_before

    def reach(self, low: float = 0.1, high: float = 0.6) -> None:
        """Wait for a random moment of the job, by the part of its calls that were made."""
        part = self.random.uniform(low, high)
        goal = int(part * self.count * self.stack.calls_each)
        until(f"{goal} calls", lambda: self.asked() >= goal or self.stack.state(self.job_id) == "done")

    def over(self) -> None:
        """The fault is over."""
        self.over_at = time.monotonic()

    def judge(
        self, *, failures: Collection[str] = (), more_lost: int = 0, unheard: int = 0, seconds: float = 120.0
    ) -> Books:
        """Wait for the job's end and judge its books.

        Every call is in the books, those that were under way in processes that died too: others book them. `more_lost`
        may be missing where it is the books themselves that were lost. Of those in the books the LLM may not have heard
        of `unheard`: they were about to be sent, or sent and lost with their connection.
        """
        self.stack.wait_done(self.job_id, seconds)
        recovered = time.monotonic() - (self.over_at or time.monotonic())
        with self.stack.redis.client() as redis:
            nothing_is_left(redis, self.job_id)
        until("the LLM to be idle", lambda: self.stack.ask_llm("/stats")["in_flight"] <= 1)
        # What dead processes had in hand is booked by whoever comes by, and that may be after the job's end.
        with contextlib.suppress(AssertionError):
            until("every call in the books", lambda: self.asked() == calls(self.stack) - self.calls_before, 180)
        books = read(self.stack, self.job_id, self.count, calls_before=self.calls_before, asked=self.asked())
        deaths = self.stack.deaths() - self.deaths_before
        self._report(books, recovered, deaths)
        assert (books.lost, books.double, set(books.failures)) == (0, 0, set(failures)), books
        counters_equal_sums(self.stack, self.job_id)
        assert -unheard <= books.unbooked <= more_lost, f"{books}, after {deaths} deaths"
        return books

    def _report(self, books: Books, recovered: float, deaths: int) -> None:
        line = {"fault": self.fault, "seed": self.seed, "recovered": recovered, "deaths": deaths}
        line |= asdict(books) | {"unbooked": books.unbooked, "failures": len(books.failures)}
        print(f"seed {self.seed}: {json.dumps(line)}")  # the seed of a failure, and what came of it
        if path := os.environ.get("FAULT_REPORT"):
            with Path(path).open("a") as report:
                report.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def trial(stack: Stack, fault: str, seed: int, *, count: int = 200) -> Iterator[Trial]:
    """A job that runs when the body begins, and is over as a fault when it ends; the test judges it then."""
    made = Trial(stack, fault, seed, count=count)
    made.enqueue()
    yield made
    made.over()
