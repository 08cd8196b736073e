"""What a job costs that is bought in batches: CPU and memory by the number of requests, and the price."""

from pathlib import Path
from typing import Final

import pytest

from tests.benchmarks.figures import knob, tell
from tests.benchmarks.test_scale import Memory
from tests.benchmarks.whole import ROLES, whole

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(0)]
REQUESTS: Final = knob("REQUESTS", 50_000)
CALLS: Final = 16
PRICES: Final = {"THEMES_LLM__PRICES": "{sandbox: {input_usd: 1, output_usd: 2}}"}


def test_a_job_in_batches(tmp_path: Path) -> None:
    """Whole system. Full answers, one worker, batches of 50,000: a tenth of BENCH_REQUESTS, and all of them.

    Beside each the same number of other destinations at the standard tier, whose calls are answered at once.
    """
    for requests in (REQUESTS // 10, REQUESTS):
        folder = tmp_path / str(requests)
        folder.mkdir()
        names = [f"Town {number}" for number in range(requests // CALLS)]
        with whole(folder, 5, script="batch_server.py", **PRICES) as system:
            memory = Memory(system)
            with system.working(1, max_memory_cache_mb=16), memory.watched():
                measured = system.run(names, "--tier", "batch")
            with system.working(1, max_memory_cache_mb=16):
                standard = system.run([f"City {number}" for number in range(len(names))])
            status = system.status(measured.job_id)
        case = f"{len(names) * CALLS:,} requests"
        assert measured.calls == len(names) * CALLS
        tell(case, "CPU, all but the provider", [measured.cpu_of(*ROLES, "producer")], "s")
        beside = measured.cpu_of(*ROLES) / standard.cpu_of(*ROLES)
        tell(case, "CPU / that of the same job at the standard tier", [beside], "x")
        for role in ROLES:
            tell(case, f"CPU a request, {role}", [measured.cpu[role] / measured.calls * 1e3], "ms")
        for role, megabytes in memory.most.items():
            tell(case, f"memory at most, {role}", [megabytes], "MB")
        saved = status["batches"]["saved_usd"]
        tell(case, "price beside standard", [status["cost_usd"] / (status["cost_usd"] + saved)])
