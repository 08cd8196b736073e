"""What each step takes, and what the process uses.

`span` measures one operation; `sample` reads the process's CPU and memory. Both end in a snapshot that travels with the
worker's heartbeat. Off (`enable_performance_profiling: false`), a span costs one attribute look-up and records nothing.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from workers.observe.metrics import Histogram


class PerformanceProfiler:
    """Spans and samples of one process."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._spans: dict[str, Histogram] = {}
        self._process = psutil.Process() if enabled else None
        self._usage: dict[str, float] = {}
        if self._process:
            self._process.cpu_percent()  # the first call only sets the mark

    def __repr__(self) -> str:
        return f"<PerformanceProfiler enabled={self.enabled} spans={len(self._spans)}>"

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Measure the body's wall time under `name`, whether it succeeds or raises."""
        if not self.enabled:
            yield
            return
        began = time.perf_counter()
        try:
            yield
        finally:
            self.record(name, time.perf_counter() - began)

    def record(self, name: str, seconds: float) -> None:
        """Count one duration under `name`."""
        if self.enabled:
            self._spans.setdefault(name, Histogram()).add(seconds)

    def sample(self) -> None:
        """Read CPU (percent of one core since the last sample), resident memory (bytes) and threads."""
        if self._process is None:
            return
        with self._process.oneshot():
            self._usage = {
                "cpu_percent": self._process.cpu_percent(),
                "rss_bytes": float(self._process.memory_info().rss),
                "threads": float(self._process.num_threads()),
            }

    def snapshot(self) -> dict[str, Any]:
        """Everything measured so far: `spans` by name in `Histogram.as_dict` form, and `process`."""
        if not self.enabled:
            return {}
        spans = {name: histogram.as_dict() for name, histogram in self._spans.items()}
        return {"spans": spans, "process": dict(self._usage)}
