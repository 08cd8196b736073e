"""The file of a call journal: its layout, and what is read of one whose process is dead.

`workers.observe.call_journal` writes it, `workers.results.journal` books what it holds.
"""

import contextlib
import errno
import fcntl
import math
import mmap
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, error
from typing import Any, Final, Self

from config.errors import ThemesError
from tasks.messages import Usage

#: The folder of the files in the state directory.
FOLDER: Final = "calls"
#: How a file's name ends; while it is being made, and once it was found to be unreadable.
SUFFIX: Final = ".calls"
NEW_SUFFIX: Final = ".new"
BAD_SUFFIX: Final = ".bad"
#: Slots beyond one for each lane: destinations whose lane was taken from them while they could not be booked.
SPARE_SLOTS: Final = 16
#: Files in the folder above which no more are made: something keeps them from being booked.
MAX_FILES: Final = 1_000
#: Slots that a file may have; more lanes than a process may have.
MAX_SLOTS: Final = 4_096

MAGIC: Final = b"themes\x00\x01"
#: Magic, slots, bytes of a slot, pid, length of the worker's name, its bytes.
HEADER: Final = Struct("@8sIIIH254s")
HEADER_BYTES: Final = 4_096
SLOT_BYTES: Final = 640
#: Attempt, time of the start, lengths of the job's and the destination's id, their bytes.
WHO: Final = Struct("@qdHH124s")
MAX_ID_BYTES: Final = 124
#: Calls, prompt tokens, completion tokens, estimated calls; then calls under way with their estimated tokens.
#: US dollars of both, NaN where a price is not known; time of the last change; time under which it is booked, or 0;
#: cached tokens, tokens written into a cache, reasoning tokens; US dollars by the price lists, and
#: those that tiers have saved, NaN as above.
SPENT: Final = Struct("@7q4d3q2d")
#: What the cache did: whole numbers of a `Usage`, then what its hits have saved in US dollars.
CACHE: Final = Struct("@10qd")
CACHE_FIELDS: Final = (
    "cache_hits", "coalesced", "memory_hits", "cache_misses", "cache_stores", "cache_corrupt", "bytes_raw",
    "bytes_stored", "saved_prompt_tokens", "saved_completion_tokens",
)  # fmt: skip

#: Places in a slot: which copy is valid (0: the slot is free), which cache copy is, and the low bits of the number of
#: the call that is being sent.
VALID, CACHE_VALID, SENDING = 0, 1, 2
WHO_AT: Final = 8
SPENT_AT: Final = (152, 280)
CACHE_AT: Final = (408, 496)


class DamagedJournalError(ThemesError):
    """This file is foreign, of another version, or damaged."""


class CallFile:
    """A file that this process has mapped and locked, and its slots. Slots are named by their offsets."""

    def __init__(self, path: Path, lock: int, map_: mmap.mmap, slots: int) -> None:
        self.path = path
        self.map = map_
        self._lock: int | None = lock
        self._slots = slots
        self._free = [HEADER_BYTES + number * SLOT_BYTES for number in reversed(range(slots))]

    def __repr__(self) -> str:
        return f"<CallFile {self.path} in_use={self._slots - len(self._free)}/{self._slots}>"

    @classmethod
    def create(cls, folder: Path, worker: str, slots: int) -> Self:
        """A new file in the folder, which is made too. Raises OSError: it cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        if sum(1 for _ in folder.iterdir()) >= MAX_FILES:
            raise OSError(f"it holds {MAX_FILES} files that nobody books: see what the consumer says")
        path = folder / f"{uuid.uuid4().hex[:16]}{NEW_SUFFIX}"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = HEADER_BYTES + slots * SLOT_BYTES
            _fill(lock, size)
            map_ = mmap.mmap(lock, size)
            name = worker.encode()[:254]
            HEADER.pack_into(map_, 0, MAGIC, slots, SLOT_BYTES, os.getpid(), len(name), name)
            return cls(path.rename(path.with_suffix(SUFFIX)), lock, map_, slots)
        except BaseException:
            os.close(lock)
            path.unlink(missing_ok=True)
            raise

    def is_in_place(self) -> bool:
        """Whether its path still leads to it: else the process that looks for it after a kill does not find it.

        Raises:
            OSError: this cannot be found out.
        """
        if self._lock is None:
            return False
        try:
            found = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return os.path.samestat(found, os.fstat(self._lock))

    def take(self) -> int | None:
        """A free slot; None when all are in use."""
        return self._free.pop() if self._free else None

    def free(self, offset: int) -> None:
        self.map[offset + VALID] = 0
        self._free.append(offset)

    def close(self) -> None:
        """Release the lock; where all slots are free the file is removed."""
        if self._lock is None:
            return
        with contextlib.suppress(OSError):  # an empty file that stays is removed by the next process that looks
            if len(self._free) == self._slots and self.is_in_place():
                self.path.unlink()
        # The map stays for as long as a run holds it; the lock must not.
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        self._lock = None


def _fill(file: int, size: int) -> None:
    """Take the room for all of it now: a store into a mapped hole of a full disk would kill the process."""
    if os.write(file, bytes(size)) != size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass(frozen=True, slots=True)
class Orphan:
    """A run that its process left behind. `at` is the time under which it is booked: always the same."""

    job_id: str
    destination_id: str
    attempt: int
    at: float
    elapsed_ms: float
    usage: Usage
    #: Calls, in `usage`, that may not have been sent: the process died while it sent them.
    uncertain: int


@dataclass(frozen=True, slots=True)
class Remains:
    worker: str
    pid: int
    orphans: tuple[Orphan, ...]


def read(data: bytes) -> Remains:
    """What a dead process's file holds. Raises DamagedJournalError: it is foreign, of another version, or damaged."""
    try:
        magic, slots, slot_bytes, pid, length, name = HEADER.unpack_from(data)
        if magic != MAGIC or slot_bytes != SLOT_BYTES or slots > MAX_SLOTS:
            raise DamagedJournalError("its head is not ours")
        if len(data) != HEADER_BYTES + slots * SLOT_BYTES:
            raise DamagedJournalError(f"{len(data)} bytes long, and {slots} slots need another length")
        offsets = (HEADER_BYTES + number * SLOT_BYTES for number in range(slots))
        orphans = tuple(_orphan(data, offset) for offset in offsets if data[offset + VALID])
        return Remains(name[:length].decode(), pid, orphans)
    except (error, UnicodeDecodeError, IndexError) as exc:
        raise DamagedJournalError(str(exc)) from exc


def _orphan(data: bytes, offset: int) -> Orphan:
    attempt, began, job, destination, ids = WHO.unpack_from(data, offset + WHO_AT)
    spent = list(SPENT.unpack_from(data, offset + SPENT_AT[data[offset + VALID] - 1]))
    turn = data[offset + CACHE_VALID]
    cache = list(CACHE.unpack_from(data, offset + CACHE_AT[turn - 1])) if turn else [0] * 10 + [0.0]
    uncertain = int(data[offset + SENDING] == (spent[0] + 1) & 0xFF)
    touched, at = spent[9], spent[10]
    times = (began, touched, at)
    if (
        min(*spent[:7], *spent[11:14], *cache[:10]) < 0
        or not all(map(math.isfinite, times))
        or not job
        or not destination
    ):
        raise DamagedJournalError(f"the slot at {offset} cannot be true")
    spent[0] += uncertain
    return Orphan(
        job_id=ids[:job].decode("ascii"),
        destination_id=ids[job : job + destination].decode("ascii"),
        attempt=attempt,
        at=at or touched,
        elapsed_ms=round(max(0.0, (at or touched) - began) * 1000, 1),
        usage=usage_of(spent, cache),
        uncertain=uncertain,
    )


def usage_of(spent: list[Any], cache: list[Any]) -> Usage:
    """The two copies' numbers as a `Usage`: what is under way counts as it was expected."""
    cost, listed = spent[7] + spent[8], spent[14] + spent[8]
    return Usage(
        llm_calls=spent[0],
        prompt_tokens=spent[1] + spent[5],
        completion_tokens=spent[2] + spent[6],
        estimated_calls=spent[3] + spent[4],
        cost_usd=None if math.isnan(cost) else cost,
        cached_tokens=spent[11],
        cache_write_tokens=spent[12],
        reasoning_tokens=spent[13],
        listed_usd=None if math.isnan(listed) else listed,
        tier_saved_usd=None if math.isnan(spent[15]) else spent[15],
        saved_usd=None if math.isnan(cache[-1]) else cache[-1],
        **dict(zip(CACHE_FIELDS, cache, strict=False)),
    )
