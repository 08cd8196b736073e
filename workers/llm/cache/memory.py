"""The memory tier of the cache: bounded in bytes, and smaller when the process is under pressure."""

import logging
import time
from collections import OrderedDict
from typing import Final

import psutil

log = logging.getLogger("themes.cache")

#: Bytes that Python needs around an entry, beyond its stored value.
ENTRY_OVERHEAD_BYTES: Final = 400
#: Seconds between two looks at the process's size.
MEMORY_CHECK_SECONDS: Final = 1.0
MIB: Final = 1024 * 1024


class MemoryTier:
    """Packed completions, the least recently used leaving first when `max_bytes` are exceeded.

    It shrinks when the process exceeds `pressure_bytes`; 0: the memory guard shrinks it.
    """

    def __init__(self, max_bytes: int, *, pressure_bytes: int) -> None:
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self.max_bytes = max_bytes
        self._pressure_bytes = pressure_bytes
        #: Bytes held, overhead included.
        self.size_bytes = 0
        self._checked_at = 0.0
        self._process = psutil.Process()
        self.evictions = 0

    def __repr__(self) -> str:
        return f"<MemoryTier entries={len(self._entries)} bytes={self.size_bytes} max={self.max_bytes}>"

    def resize(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._shrink_to(max_bytes)

    def get(self, key: str) -> bytes | None:
        packed = self._entries.get(key)
        if packed is not None:
            self._entries.move_to_end(key)
        return packed

    def put(self, key: str, packed: bytes) -> None:
        self.discard(key)
        self._entries[key] = packed
        self.size_bytes += len(packed) + ENTRY_OVERHEAD_BYTES
        self._shrink_to(self.max_bytes)
        self._relieve_pressure()

    def discard(self, key: str) -> None:
        packed = self._entries.pop(key, None)
        if packed is not None:
            self.size_bytes -= len(packed) + ENTRY_OVERHEAD_BYTES

    def clear(self) -> None:
        self._entries.clear()
        self.size_bytes = 0

    def _shrink_to(self, max_bytes: int) -> None:
        while self.size_bytes > max_bytes and self._entries:
            _, packed = self._entries.popitem(last=False)
            self.size_bytes -= len(packed) + ENTRY_OVERHEAD_BYTES
            self.evictions += 1

    def _relieve_pressure(self) -> None:
        now = time.monotonic()
        if not self._pressure_bytes or now - self._checked_at < MEMORY_CHECK_SECONDS:
            return
        self._checked_at = now
        rss = self._process.memory_info().rss
        if rss > self._pressure_bytes and self.size_bytes > MIB:
            log.warning(
                "action=cache_shrink %d MiB resident, memory_pressure_threshold_mb is %d: half of the cache goes",
                rss // MIB, self._pressure_bytes // MIB,
            )  # fmt: skip
            self._shrink_to(self.size_bytes // 2)
