"""How much of the machine others used while a case was measured: processes that are not the benchmark's, and a host.

A benchmark's own processes are this process, its children, and whoever inherited its mark in the environment.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

#: In the environment of everything that a benchmark starts.
MARK: Final = "BENCHMARK_OF"


def allowed() -> float:
    """Cores that others may use on average, as BENCH_NOISE says; with more, a case's figures are not kept."""
    return float(os.environ.get("BENCH_NOISE", "0.15"))


class Others:
    """Begin to watch what others use; `share` says how many cores it was on average, since."""

    def __init__(self) -> None:
        os.environ[MARK] = str(os.getpid())
        self._began, self._used = time.monotonic(), _used_by_others()

    def share(self) -> float:
        return max(0.0, _used_by_others() - self._used) / max(0.1, time.monotonic() - self._began)


def _used_by_others() -> float:
    """CPU seconds until now. What a parent reaped counts as its own: who ended in between is not lost."""
    ours = {os.getpid(), *(one.pid for one in psutil.Process().children(recursive=True))}
    total = _stolen()
    for process in psutil.process_iter():
        if process.pid in ours or _is_marked(process.pid):
            continue
        with suppress(psutil.Error):
            # The first process reaps whoever lost its parent, our own too.
            total += sum(process.cpu_times()[: 2 if process.pid == 1 else 4])
    return total


def _stolen() -> float:
    """Seconds that a host gave to others."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


def _is_marked(pid: int) -> bool:
    with suppress(OSError):
        return f"{MARK}={os.getpid()}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False
