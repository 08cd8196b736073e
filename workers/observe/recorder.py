"""What each destination in work has cost so far, where a kill cannot take it: a file that this process has mapped.

The page cache keeps what was stored before a `kill -9`. The file is locked (flock) for as long as its process lives, so
whoever gets the lock knows that the owner is dead, and books what it held (`workers.results.orphans`).

One slot a destination. Its counts stand in two copies: the one that is not valid is written, then one byte, which no
kill can cut in half, says that it is valid now. A call is announced by one byte before it is handed to the operating
system and counted after it: a process that died in between leaves a slot that says so (`Orphan.uncertain`).

Not here: what a finished run has cost. That is its `Result` or `Spent`, and the slot is free once it is on the stream.
"""

import contextlib
import errno
import fcntl
import logging
import math
import mmap
import os
import time
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, error
from typing import TYPE_CHECKING, Any, Final, Self

from tasks.messages import Usage

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger("themes.recorder")

#: The folder of the files in the state directory.
FOLDER: Final = "calls"
#: How a file's name ends; while it is being made, and once it was found to be unreadable.
SUFFIX: Final = ".calls"
NEW_SUFFIX: Final = ".new"
BAD_SUFFIX: Final = ".bad"
#: Slots beyond one for each lane: destinations whose lane was taken from them while they could not be booked.
SPARE_SLOTS: Final = 16
#: Files in the folder above which no more are made: something keeps them from being booked.
MOST_FILES: Final = 1_000
#: Slots that a file may have; more lanes than a process may have.
MOST_SLOTS: Final = 4_096

_MAGIC: Final = b"themes\x00\x01"
#: Magic, slots, bytes of a slot, pid, length of the worker's name, its bytes.
_HEADER: Final = Struct("@8sIIIH254s")
_HEADER_BYTES: Final = 4_096
_SLOT_BYTES: Final = 512
#: Attempt, time of the start, lengths of the job's and the destination's id, their bytes.
_WHO: Final = Struct("@qdHH124s")
_MOST_ID_BYTES: Final = 124
#: Calls, prompt tokens, completion tokens, estimated calls; then calls under way with their estimated tokens.
#: US dollars of both, NaN where a price is not known; time of the last change; time under which it is booked, or 0.
_SPENT: Final = Struct("@7q4d")
#: What the cache did: whole numbers of a `Usage`, then what its hits have saved in US dollars.
_CACHE: Final = Struct("@10qd")
_CACHE_FIELDS: Final = (
    "cache_hits", "coalesced", "memory_hits", "cache_misses", "cache_stores", "cache_corrupt", "bytes_raw",
    "bytes_stored", "saved_prompt_tokens", "saved_completion_tokens",
)  # fmt: skip

#: Places in a slot: which copy is valid (0: the slot is free), which cache copy is, and the low bits of the number of
#: the call that is being sent.
_VALID, _CACHE_VALID, _SENDING = 0, 1, 2
_WHO_AT: Final = 8
_SPENT_AT: Final = (152, 240)
_CACHE_AT: Final = (328, 416)


class UnreadableError(ValueError):
    """This file is none of ours, or it is damaged."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a call is likely to cost, for the books of a process that never heard the answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0


_NOTHING: Final = Expected()


class Recording:
    """One destination's run, as it is written down. Everything is synchronous: what returned survives a kill."""

    __slots__ = (
        "_cache",
        "_cached",
        "_map",
        "_offset",
        "_recorder",
        "_spent",
        "_turn",
        "durable",
        "is_open",
        "is_used",
    )

    def __init__(self, recorder: "CallRecorder", map_: mmap.mmap | None, offset: int) -> None:
        self._recorder = recorder
        self._map = map_
        self._offset = offset
        self._spent: list[Any] = [0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, time.time(), 0.0]
        self._cache: list[Any] = [0] * len(_CACHE_FIELDS) + [0.0]
        self._turn = 0
        self._cached = 0
        #: Whether the run has yet to be booked: what comes later is not of it.
        self.is_open = True
        #: Whether anything was counted.
        self.is_used = False
        #: Done when what the run has cost is durable; None where it is as soon as it is handed over.
        self.durable: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Recording {'open' if self.is_open else 'closed'} calls={self._spent[0]}>"

    def sending(self) -> None:
        """Announce a call: it is about to be handed to the operating system."""
        if self._map is not None and self.is_open:
            self._map[self._offset + _SENDING] = (self._spent[0] + 1) & 0xFF

    def unsent(self) -> None:
        """Take the announcement back: nothing was sent."""
        if self._map is not None and self.is_open:
            self._map[self._offset + _SENDING] = self._spent[0] & 0xFF

    def sent(self, expected: Expected = _NOTHING) -> None:
        """Count a call that is under way."""
        s = self._spent
        s[0] += 1
        s[4] += 1
        s[5] += expected.prompt_tokens
        s[6] += expected.completion_tokens
        s[8] += math.nan if expected.cost_usd is None else expected.cost_usd
        self._write()

    def ended(
        self,
        calls: int,
        expected: Expected = _NOTHING,
        *,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        cost_usd: float | None = 0.0,
        estimated: int = 0,
    ) -> None:
        """Count the end of so many calls, and the tokens of the answer where there was one."""
        s = self._spent
        s[1] += prompt_tokens
        s[2] += completion_tokens
        s[3] += estimated
        s[4] -= calls
        s[5] -= calls * expected.prompt_tokens
        s[6] -= calls * expected.completion_tokens
        s[7] += math.nan if cost_usd is None else cost_usd
        # Exactly nothing when nothing is under way: neither a rounding error nor an unknown price stays.
        s[8] = s[8] - calls * (math.nan if expected.cost_usd is None else expected.cost_usd) if s[4] else 0.0
        self._write()

    def cached(self, usage: Usage) -> None:
        """Count what the cache did for a stage that has ended."""
        if not self.is_open:
            return
        self.is_used = True
        for place, name in enumerate(_CACHE_FIELDS):
            self._cache[place] += getattr(usage, name)
        self._cache[-1] += math.nan if usage.saved_usd is None else usage.saved_usd
        if self._map is not None:
            self._cached ^= 1
            _pack(_CACHE, self._map, self._offset + _CACHE_AT[self._cached], self._cache)
            self._map[self._offset + _CACHE_VALID] = self._cached + 1

    def books_at(self, at: float) -> None:
        """Say under which time the run is about to be booked; nothing more is counted."""
        self._spent[10] = at
        self._write()
        self.is_open = False

    def usage(self) -> Usage:
        """All of it so far. Calls that were not answered count with the tokens that were expected."""
        return _usage(self._spent, self._cache)

    def forget(self) -> None:
        """It is booked: the slot is free, or will be once what was booked is durable."""
        self.is_open = False
        if self.durable is not None and not self.durable.done():
            self.durable.add_done_callback(lambda done: None if done.cancelled() else self.forget())
            return
        if self._map is not None:
            self._map[self._offset + _VALID] = 0
            self._recorder.freed(self._offset)
            self._map = None

    def _write(self) -> None:
        if not self.is_open:
            return
        self.is_used = True
        self._spent[9] = time.time()
        if self._map is not None:
            self._turn ^= 1
            _pack(_SPENT, self._map, self._offset + _SPENT_AT[self._turn], self._spent)
            self._map[self._offset + _VALID] = self._turn + 1

    def open_slot(self, job_id: str, destination_id: str, attempt: int) -> bool:
        """Write down whose run it is; False when it does not fit."""
        ids = job_id.encode(), destination_id.encode()
        if self._map is None or sum(map(len, ids)) > _MOST_ID_BYTES:
            return False
        at = self._offset + _WHO_AT
        _WHO.pack_into(self._map, at, attempt, self._spent[9], len(ids[0]), len(ids[1]), b"".join(ids))
        self._map[self._offset + _CACHE_VALID] = self._map[self._offset + _SENDING] = 0
        _SPENT.pack_into(self._map, self._offset + _SPENT_AT[0], *self._spent)
        self._map[self._offset + _VALID] = 1
        return True


def _pack(form: Struct, map_: mmap.mmap, at: int, amounts: list[Any]) -> None:
    """Write amounts into a slot; one that no slot holds is written as 0: it cannot be true."""
    try:
        form.pack_into(map_, at, *amounts)
    except (error, OverflowError, TypeError):
        form.pack_into(map_, at, *(each if _fits(each) else 0 for each in amounts))


def _fits(amount: Any) -> bool:
    return isinstance(amount, float) or (isinstance(amount, int) and abs(amount) < 2**63)


#: The run that the current task works for, if there is one.
_CURRENT: Final[ContextVar[Recording | None]] = ContextVar("recording", default=None)


def current() -> Recording | None:
    """What the calls of the current task are written down in."""
    return _CURRENT.get()


@contextlib.contextmanager
def recording(run: Recording) -> Iterator[None]:
    """Within the body, and in the tasks that it starts, calls are written down in this run."""
    token = _CURRENT.set(run)
    try:
        yield
    finally:
        _CURRENT.reset(token)


class CallRecorder:
    """The file of one worker process; without one (`CallRecorder()`) runs are counted and not written down.

    Open it where the process lives: the lock ends with the process, or with `close`.
    """

    def __init__(self) -> None:
        self._map: mmap.mmap | None = None
        self._lock: int | None = None
        #: The file, also once it was let go.
        self.path: Path | None = None
        self._free: list[int] = []
        self._slots = 0

    def __repr__(self) -> str:
        return f"<CallRecorder {self.path or 'no file'} in_use={self._slots - len(self._free)}/{self._slots}>"

    @classmethod
    def in_folder(cls, folder: Path, *, worker: str, lanes: int) -> Self:
        """A recorder with a new file in the folder; without one, and one clear line, where that cannot be made."""
        made = cls()
        try:
            made._open(folder, worker, min(MOST_SLOTS, lanes + SPARE_SLOTS))
        except OSError as exc:
            log.warning(
                "action=recorder_off %s cannot be written (%s): should this process be killed, its calls under way "
                "will not be in the books; set THEMES_STATE_DIR to a folder that it may write",
                folder,
                exc.strerror or exc,
            )
        return made

    def _open(self, folder: Path, worker: str, slots: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if sum(1 for _ in folder.iterdir()) >= MOST_FILES:
            raise OSError(f"it holds {MOST_FILES} files that nobody books: see what the consumer says")
        name = uuid.uuid4().hex[:16]
        path = folder / f"{name}{NEW_SUFFIX}"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = _HEADER_BYTES + slots * _SLOT_BYTES
            _fill(lock, size)
            map_ = mmap.mmap(lock, size)
            name_bytes = worker.encode()[:254]
            _HEADER.pack_into(map_, 0, _MAGIC, slots, _SLOT_BYTES, os.getpid(), len(name_bytes), name_bytes)
            self.path = path.rename(path.with_suffix(SUFFIX))
        except BaseException:
            os.close(lock)
            path.unlink(missing_ok=True)
            raise
        self._map, self._lock, self._slots = map_, lock, slots
        self._free = [_HEADER_BYTES + number * _SLOT_BYTES for number in reversed(range(slots))]

    def begin(self, job_id: str, destination_id: str, attempt: int) -> Recording:
        """Write down that a destination's run begins."""
        if self._map is None:
            return Recording(self, None, 0)
        if self._free:
            run = Recording(self, self._map, self._free.pop())
            if run.open_slot(job_id, destination_id, attempt):
                return run
            run.forget()
        log.warning("action=recorder_full job_id=%s %r: a run is not written down", job_id, self)
        return Recording(self, None, 0)

    def freed(self, offset: int) -> None:
        """A slot may be used again."""
        self._free.append(offset)

    def close(self) -> None:
        """Let go of the file. Where nothing is left to book it is removed; else whoever comes next books it."""
        if self._map is None or self._lock is None or self.path is None:
            return
        if len(self._free) == self._slots:
            self.path.unlink(missing_ok=True)
        # The map stays for as long as a run holds it; the lock must not.
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        self._map = self._lock = None


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
    #: Calls, in `usage`, of which nobody can say whether they were sent: the process died while it sent them.
    uncertain: int


@dataclass(frozen=True, slots=True)
class Remains:
    """What is left of a process."""

    worker: str
    pid: int
    orphans: tuple[Orphan, ...]


def read(data: bytes) -> Remains:
    """What a dead process's file holds.

    Raises:
        UnreadableError: it is foreign, of another version, or damaged.
    """
    try:
        magic, slots, slot_bytes, pid, length, name = _HEADER.unpack_from(data)
        if magic != _MAGIC or slot_bytes != _SLOT_BYTES or slots > MOST_SLOTS:
            raise UnreadableError("its head is not ours")
        if len(data) != _HEADER_BYTES + slots * _SLOT_BYTES:
            raise UnreadableError(f"{len(data)} bytes long, and {slots} slots need another length")
        offsets = (_HEADER_BYTES + number * _SLOT_BYTES for number in range(slots))
        orphans = tuple(_orphan(data, offset) for offset in offsets if data[offset + _VALID])
        return Remains(name[:length].decode(), pid, orphans)
    except (error, UnicodeDecodeError, IndexError) as exc:
        raise UnreadableError(str(exc)) from exc


def _orphan(data: bytes, offset: int) -> Orphan:
    attempt, began, job, destination, ids = _WHO.unpack_from(data, offset + _WHO_AT)
    spent = list(_SPENT.unpack_from(data, offset + _SPENT_AT[data[offset + _VALID] - 1]))
    turn = data[offset + _CACHE_VALID]
    cache = list(_CACHE.unpack_from(data, offset + _CACHE_AT[turn - 1])) if turn else [0] * 10 + [0.0]
    uncertain = int(data[offset + _SENDING] == (spent[0] + 1) & 0xFF)
    touched, at = spent[9], spent[10]
    times = (began, touched, at)
    if min(*spent[:7], *cache[:10]) < 0 or not all(map(math.isfinite, times)) or not job or not destination:
        raise UnreadableError(f"the slot at {offset} cannot be true")
    spent[0] += uncertain
    return Orphan(
        job_id=ids[:job].decode("ascii"),
        destination_id=ids[job : job + destination].decode("ascii"),
        attempt=attempt,
        at=at or touched,
        elapsed_ms=round(max(0.0, (at or touched) - began) * 1000, 1),
        usage=_usage(spent, cache),
        uncertain=uncertain,
    )


def _usage(spent: list[Any], cache: list[Any]) -> Usage:
    cost = spent[7] + spent[8]
    return Usage(
        llm_calls=spent[0],
        prompt_tokens=spent[1] + spent[5],
        completion_tokens=spent[2] + spent[6],
        estimated_calls=spent[3] + spent[4],
        cost_usd=None if math.isnan(cost) else cost,
        saved_usd=None if math.isnan(cache[-1]) else cache[-1],
        **dict(zip(_CACHE_FIELDS, cache, strict=False)),
    )
