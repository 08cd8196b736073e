"""Entries in the results stream that nobody understands."""

import os
import random

import msgspec
import pytest

from tasks import keys
from tasks.messages import JobSealed, Result, Usage, pack
from tests.faults.books import trial
from tests.faults.stack import Stack, until

ENTRIES = 10_000


def _garbage(chance: random.Random, job_id: str) -> dict[bytes, bytes]:
    """One entry: noise, a good one cut, changed or misdirected, another field, none of its own."""
    good = pack(_entry(chance, job_id), compress=chance.random() < 0.5)
    spoiled = bytearray(good)
    for _ in range(chance.randint(1, 4)):
        spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
    bodies = [
        os.urandom(chance.randrange(200)),
        good[: chance.randrange(len(good))],
        bytes(spoiled),
        b"",
        b"\x00" * 1000,
        b"[" * 5000,
        msgspec.json.encode({"type": "Result", "job_id": 7}),
    ]
    name = chance.choice([b"b", b"b", b"b", b"c", b"", b"\xff"])
    return {name: chance.choice(bodies)}


def _entry(chance: random.Random, job_id: str) -> JobSealed | Result:
    # Of no job: a changed entry that is still an entry must not count for ours.
    other = f"{job_id}-{chance.randrange(9)}"
    if chance.random() < 0.5:
        return JobSealed(other, chance.choice([0, 5, 2**62]))
    return Result(
        job_id=other, destination_id=chance.choice(["x", "\u0000", "a" * 10_000]), attempt=chance.choice([0, 1, 2**62]),
        usage=Usage(), worker="w", at=0.0, elapsed_ms=0.0,
    )  # fmt: skip


@pytest.mark.soak
def test_ten_thousand_garbage_entries_in_the_results_stream(own_stack: Stack, seed: int) -> None:
    with trial(own_stack, "garbage in the results", seed) as job, own_stack.redis.client() as redis:
        job.reach(0.1, 0.3)
        for _ in range(ENTRIES // 500):
            with redis.pipeline(transaction=False) as pipeline:
                for _ in range(500):
                    pipeline.xadd(keys.RESULTS, _garbage(job.random, job.job_id))
                pipeline.execute()
    job.judge()
    until("the dead letters", lambda: own_stack.query("SELECT count(*) FROM dead_letters")[0][0] > 0)
    assert own_stack.processes["consumer"].poll() is None
