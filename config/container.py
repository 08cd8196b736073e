"""What the container that this process runs in may use of the machine: cgroup v2, v1, or both side by side.

A process sees all CPUs and all memory of the machine. So defaults are bounded by the least of the limits of its cgroup
and of those above it.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Final

#: The origin of a default that a container's limit has made smaller.
CONTAINER: Final = "container limit"
#: Bytes beyond which v1 means that there is no limit: it writes the largest number of pages.
UNLIMITED_BYTES: Final = 1 << 60
#: Part of the container's memory at which a worker process begins to shrink, and that its cache may take.
PRESSURE_SHARE: Final = 0.6
CACHE_SHARE: Final = 0.25
MIB: Final = 1024 * 1024
MAX_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class ContainerLimits:
    """CPUs (2.5 is two and a half) and bytes that may be used; None is no limit but the machine's."""

    cpus: float | None = None
    memory_bytes: int | None = None


def container_limits(root: Path = Path("/")) -> ContainerLimits:
    """The limits of the cgroup that this process is in. `root` is where `/proc` and `/sys` are found."""
    groups = list(_groups(root))
    return ContainerLimits(
        cpus=min(filter(None, map(_cpus, groups)), default=None),
        memory_bytes=min(filter(None, map(_memory, groups)), default=None),
    )


@cache
def here() -> ContainerLimits:
    return container_limits()


def cpus_allowed(limits: ContainerLimits) -> int:
    machine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, machine if limits.cpus is None else min(machine, int(limits.cpus)))


def bounded_defaults(limits: ContainerLimits) -> dict[str, int]:
    """Settings of which a container's memory bounds the default: key -> that bound in MiB."""
    if limits.memory_bytes is None:
        return {}
    shares = {
        "performance_optimization.memory_pressure_threshold_mb": PRESSURE_SHARE,
        "performance_optimization.max_memory_cache_mb": CACHE_SHARE,
    }
    return {key: int(limits.memory_bytes / MIB * share) for key, share in shares.items()}


def _groups(root: Path) -> Iterator[Path]:
    """The folders of our cgroup and of those above it, in every hierarchy that limits CPUs or memory.

    Inside a container the path may be the machine's own, of which only the end or nothing is mounted: then the mount
    itself is the container's.
    """
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = controllers.split(",")
        if controllers and not {"memory", "cpu"} & set(names):
            continue
        mounts = [mount, mount / "unified"] if not controllers else [mount / controllers, *(mount / n for n in names)]
        for top in mounts:
            inner = PurePosixPath(path.lstrip("/"))
            if ".." in inner.parts:
                inner = PurePosixPath()
            for part in (inner, *inner.parents):
                if (top / part).is_dir():
                    yield top / part


def _cpus(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").strip().partition(" ")
    if not quota:
        quota, period = _text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip()
    if not quota.isdigit() or not period.isdigit() or not int(period) or not int(quota):
        return None  # `max`, or -1: no limit
    return int(quota) / int(period)


def _memory(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        text = _text(folder / name).strip()
        if text.isdigit() and 0 < int(text) < UNLIMITED_BYTES:
            return int(text)
    return None


def _text(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(MAX_BYTES)
    except OSError:
        return ""
