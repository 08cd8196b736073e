"""What a worker process does when it has become too large: `memory_pressure_threshold_mb`.

One step a look, for memory comes back late: the cache gives up half, again and again; then lanes are retired, a quarter
at a time, down to one; then a new chunk waits until nothing is in hand. One chunk at a time always goes on. When the
process is well below the threshold the steps are taken back, the last one first.
"""

import asyncio
import ctypes
import logging
import sys
from dataclasses import dataclass, replace
from typing import Any, Final

import psutil

from workers.llm.cache.memory import MIB, MemoryTier
from workers.worker.lanes import Lanes

log = logging.getLogger("themes.memory")

#: Seconds between two looks.
LOOK_SECONDS: Final = 1.0
#: Part of the threshold below which a step is taken back: between the two nothing changes.
EASE: Final = 0.85
#: Bytes below which the cache is not worth shrinking.
SMALL_CACHE_BYTES: Final = MIB
#: Lanes are retired and called back by this part of them all.
LANE_SHARE: Final = 0.25

_FIELDS: Final = "step=%s resident_mb=%d memory_pressure_threshold_mb=%d cache_mb=%d lanes=%d: %s"
_PRESSURE: Final = f"action=memory_pressure {_FIELDS}"
_RELIEF: Final = f"action=memory_relief {_FIELDS}"


@dataclass(frozen=True, slots=True)
class Bounds:
    threshold_bytes: int
    cache_bytes: int
    lanes: int


@dataclass(frozen=True, slots=True)
class Allowed:
    """What is left of that under pressure; `holds`: no chunk is taken while another is in hand."""

    cache_bytes: int
    lanes: int
    holds: bool = False

    def step(self, bounds: Bounds) -> str:
        """How far it has come: `none`, `cache`, `lanes` or `wait`."""
        if self.holds:
            return "wait"
        if self.lanes < bounds.lanes:
            return "lanes"
        return "cache" if self.cache_bytes < bounds.cache_bytes else "none"


def decide(now: Allowed, bounds: Bounds, *, resident_bytes: int, cached_bytes: int) -> Allowed:
    """What is allowed after one more look at the process: a step down, a step back, or the same."""
    now = replace(now, cache_bytes=min(now.cache_bytes, bounds.cache_bytes), lanes=min(now.lanes, bounds.lanes))
    if resident_bytes >= bounds.threshold_bytes:
        return _tighter(now, bounds, cached_bytes)
    if resident_bytes < EASE * bounds.threshold_bytes:
        return _looser(now, bounds)
    return now


def _tighter(now: Allowed, bounds: Bounds, cached_bytes: int) -> Allowed:
    if cached_bytes > SMALL_CACHE_BYTES:
        return replace(now, cache_bytes=min(now.cache_bytes, cached_bytes // 2))
    if now.lanes > 1:
        # It must not fill again meanwhile.
        cache_bytes = min(now.cache_bytes, SMALL_CACHE_BYTES)
        return replace(now, cache_bytes=cache_bytes, lanes=max(1, now.lanes - _quarter(bounds)))
    return replace(now, cache_bytes=min(now.cache_bytes, SMALL_CACHE_BYTES), holds=True)


def _looser(now: Allowed, bounds: Bounds) -> Allowed:
    if now.holds:
        return replace(now, holds=False)
    if now.lanes < bounds.lanes:
        return replace(now, lanes=min(bounds.lanes, now.lanes + _quarter(bounds)))
    return replace(now, cache_bytes=min(bounds.cache_bytes, max(SMALL_CACHE_BYTES, now.cache_bytes * 2)))


def _quarter(bounds: Bounds) -> int:
    return max(1, round(bounds.lanes * LANE_SHARE))


class MemoryGuard:
    """Looks at this process, and keeps its cache, its lanes and its chunks to what `decide` allows."""

    def __init__(self, bounds: Bounds, *, lanes: Lanes[Any], cache: MemoryTier) -> None:
        self._bounds = bounds
        self._allowed = Allowed(bounds.cache_bytes, bounds.lanes)
        self._lanes = lanes
        self._cache = cache
        self._process = psutil.Process()
        self._resident_bytes = 0

    def __repr__(self) -> str:
        return f"<MemoryGuard {self._allowed.step(self._bounds)} {self._allowed} of {self._bounds}>"

    async def run(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """One look at the process, and at most one step."""
        self._resident_bytes = self._process.memory_info().rss
        before = self._allowed
        after = decide(before, self._bounds, resident_bytes=self._resident_bytes, cached_bytes=self._cache.size_bytes)
        if after != before:
            self._apply(after)
            self._say(before, after)

    def change(self, bounds: Bounds) -> None:
        """Keep to other settings from now on; what is retired under pressure stays retired."""
        was = self._bounds
        self._bounds = bounds
        lanes = bounds.lanes if self._allowed.lanes >= was.lanes else min(self._allowed.lanes, bounds.lanes)
        is_whole = self._allowed.cache_bytes >= was.cache_bytes
        cache_bytes = bounds.cache_bytes if is_whole else min(self._allowed.cache_bytes, bounds.cache_bytes)
        self._apply(replace(self._allowed, lanes=lanes, cache_bytes=cache_bytes))

    def may_take(self, in_hand: int) -> bool:
        if self._allowed.holds:
            return in_hand == 0
        return self._allowed.lanes >= self._bounds.lanes or in_hand < self._allowed.lanes

    def report(self) -> dict[str, Any]:
        return {
            "memory_mb": self._resident_bytes // MIB,
            "memory_threshold_mb": self._bounds.threshold_bytes // MIB,
            "memory_pressure": self._allowed.step(self._bounds),
            "memory_cache_mb": self._cache.size_bytes // MIB,
            "lanes_wanted": self._bounds.lanes,
        }

    def _apply(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._lanes.resize(allowed.lanes)
        if self._cache.max_bytes != allowed.cache_bytes:
            held = self._cache.size_bytes
            self._cache.resize(allowed.cache_bytes)
            if self._cache.size_bytes < held:
                give_back_memory()

    def _say(self, before: Allowed, after: Allowed) -> None:
        is_worse = self._resident_bytes >= self._bounds.threshold_bytes
        level, said = (logging.WARNING, _PRESSURE) if is_worse else (logging.INFO, _RELIEF)
        log.log(
            level,
            said,
            after.step(self._bounds),
            self._resident_bytes // MIB,
            self._bounds.threshold_bytes // MIB,
            after.cache_bytes // MIB,
            after.lanes,
            _done(before, after),
        )


def _done(before: Allowed, after: Allowed) -> str:
    if after.holds != before.holds:
        return "a new chunk waits until nothing is in hand" if after.holds else "chunks are taken again"
    if after.lanes != before.lanes:
        return "fewer destinations at once" if after.lanes < before.lanes else "more destinations at once again"
    return "half of the cache goes" if after.cache_bytes < before.cache_bytes else "the cache may grow again"


def give_back_memory() -> None:
    """Let the allocator give what is free back to the system, where it can (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
