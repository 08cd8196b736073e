"""What a process uses, as the operating system counts it."""

import time
from collections.abc import Callable
from typing import Final

import psutil

from workers.observe.trend import Trend

#: Seconds between two looks at the memory that is the process's alone: the kernel walks all its pages for it, some
#: milliseconds for 100 MB.
USS_SECONDS: Final = 60.0
#: Seconds between two samples of the memory's trend, at first: so nothing is said before five minutes.
TREND_SECONDS: Final = 20.0


class Sampler:
    """Reads CPU, memory, threads, descriptors, disk, network and context switches of this process.

    `known_bytes` is what the process holds on purpose, within bounds of its own: a cache that fills up is no leak.
    """

    def __init__(self, known_bytes: Callable[[], float] = lambda: 0.0) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only sets the mark
        self._uss_at = float("-inf")
        #: The last sample. Bytes and counts are since the start, but `rss_bytes`, `uss_bytes`, `threads`,
        #: `descriptors`, and `cpu_percent` of one core since the sample before. `host_net_*` are the machine's.
        #: `rss_growth_bytes_per_hour` is there, and not 0, when the memory grows for sure (workers/observe/trend.py).
        self.usage: dict[str, float] = {}
        self._trend = Trend(every_seconds=TREND_SECONDS)
        self._known_bytes = known_bytes

    def read(self) -> dict[str, float]:
        process, usage = self._process, self.usage
        with process.oneshot():
            times, switches = process.cpu_times(), process.num_ctx_switches()
            usage.update(
                cpu_percent=process.cpu_percent(),
                cpu_seconds=times.user + times.system,
                rss_bytes=float(process.memory_info().rss),
                threads=float(process.num_threads()),
                switches_voluntary=float(switches.voluntary),
                switches_involuntary=float(switches.involuntary),
            )
        if psutil.LINUX or psutil.MACOS:
            usage["descriptors"] = float(process.num_fds())
        if hasattr(process, "io_counters"):
            disk = process.io_counters()
            usage.update(disk_read_bytes=float(disk.read_bytes), disk_written_bytes=float(disk.write_bytes))
        if net := psutil.net_io_counters():
            usage.update(host_net_received_bytes=float(net.bytes_recv), host_net_sent_bytes=float(net.bytes_sent))
        now = time.monotonic()
        if self._trend.add(now, usage["rss_bytes"] - self._known_bytes()):
            usage["rss_growth_bytes_per_hour"] = round(self._trend.growth() * 3600)
        if now - self._uss_at >= USS_SECONDS:
            self._uss_at = now
            usage["uss_bytes"] = float(process.memory_full_info().uss)
        return usage
