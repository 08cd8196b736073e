"""A seeded sample of what `scripts/soak --every-call` tries in full: each way to fail, at some call of some role."""

import random
from collections.abc import Iterator

import pytest

from tests.faults.every_call import moments
from tests.faults.lab import Lab

#: Moments of each kind of call: together some ten seconds.
SAMPLE = {("redis", "worker"): 3, ("redis", "consumer"): 2, ("redis", "producer"): 1, ("http", "worker"): 2,
          ("sqlite", "consumer"): 2}  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


@pytest.mark.faults
def test_a_call_that_fails_loses_nothing_and_doubles_nothing(lab: Lab, seed: int) -> None:
    chance = random.Random(f"every call/{seed}")
    every = moments(lab.census())
    for kind, count in SAMPLE.items():
        for moment in chance.sample([one for one in every if (one.kind, one.role) == kind], count):
            verdict = lab.run(moment)
            assert verdict.is_good, f"{verdict}; again: scripts/soak --every-call {moment}"
