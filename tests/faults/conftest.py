"""A stack for the faults of one module, healed between them; the seeds; what `scripts/soak --each` counts."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stack import Stack
from tests.support.forks import Forks

SEEDS = [int(seed) for seed in os.environ.get("FAULT_SEEDS", "1").split()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test that takes a seed runs with each of FAULT_SEEDS."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", SEEDS)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Stack]:
    """Two workers, a consumer, Redis with its append-only file."""
    with Stack(tmp_path_factory.mktemp("faults") / "state", forks) as made:
        yield made


@pytest.fixture
def own_stack(tmp_path: Path, forks: Forks) -> Iterator[Stack]:
    """The same for one test alone."""
    with Stack(tmp_path / "state", forks) as made:
        yield made
