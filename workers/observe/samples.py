"""What a process uses, as the operating system counts it."""

import time
from typing import Final

import psutil

#: Seconds between two looks at the memory that is the process's alone: the kernel walks all its pages for it, some
#: milliseconds for 100 MB.
USS_SECONDS: Final = 60.0


class Sampler:
    """Reads CPU, memory, threads, descriptors, disk, network and context switches of this process."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only sets the mark
        self._uss_at = float("-inf")
        #: The last sample. Bytes and counts are since the start, but `rss_bytes`, `uss_bytes`, `threads`,
        #: `descriptors`, and `cpu_percent` of one core since the sample before. `host_net_*` are the machine's.
        self.usage: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<Sampler pid={self._process.pid} rss={self.usage.get('rss_bytes', 0) / 2**20:.0f} MiB>"

    def read(self) -> dict[str, float]:
        """Take a sample."""
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
        if now - self._uss_at >= USS_SECONDS:
            self._uss_at = now
            usage["uss_bytes"] = float(process.memory_full_info().uss)
        return usage
