"""What each destination in work has cost so far, in a memory-mapped file that survives a kill.

The file is locked (flock) for as long as its process lives: another process that gets the lock replays what it held
(`workers.results.journal`).

Each destination has a slot with two copies of its counts: the invalid one is written, then one byte, which no kill can
cut in half, makes it valid. One byte announces a call before it is handed to the operating system, and the call is
counted after that: a process that died in between leaves a slot that says so (`Orphan.uncertain`).

What a finished run has cost is its `Result` or `Spent`; its slot is free once that is on the stream.
"""

import asyncio
import contextlib
import logging
import math
import mmap
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from struct import Struct, error
from typing import Any, Final, Self

import msgspec

from tasks.messages import Usage
from workers.observe.call_file import (
    CACHE,
    CACHE_AT,
    CACHE_FIELDS,
    CACHE_VALID,
    MAX_ID_BYTES,
    MAX_SLOTS,
    SENDING,
    SPARE_SLOTS,
    SPENT,
    SPENT_AT,
    VALID,
    WHO,
    WHO_AT,
    CallFile,
    usage_of,
)

log = logging.getLogger("themes.recorder")


class Expected(msgspec.Struct, frozen=True):
    """What a call is likely to cost, for the books of a process that never heard the answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0


class Bill(msgspec.Struct, frozen=True):
    """What answers have cost; `estimated` of them by a guess. `listed_usd` is what the price lists say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    listed_usd: float | None = 0.0
    estimated: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    tier_saved_usd: float | None = 0.0


_NOTHING: Final = Expected()
NO_BILL: Final = Bill()


class Recording:
    """One destination's run, as it is written down. Everything is synchronous: what returned survives a kill."""

    __slots__ = (
        "_began",
        "_cache",
        "_cached",
        "_file",
        "_ids",
        "_journal",
        "_map",
        "_offset",
        "_spent",
        "_turn",
        "attempt",
        "chunk_id",
        "durable",
        "is_open",
        "is_used",
    )  # fmt: skip

    def __init__(
        self, journal: "CallJournal", job_id: str, destination_id: str, attempt: int, chunk_id: str = ""
    ) -> None:
        self._journal = journal
        #: What waits where the destination waits for a batch.
        self.chunk_id = chunk_id
        self._ids = job_id.encode(), destination_id.encode()
        self.attempt = attempt
        self._began = time.time()
        #: The file that it has a slot of, if any; the map of that file, and the slot's place in it.
        self._file: CallFile | None = None
        self._map: mmap.mmap | None = None
        self._offset = 0
        self._spent: list[Any] = [0, 0, 0, 0, 0, 0, 0, 0.0, 0.0, self._began, 0.0, 0, 0, 0, 0.0, 0.0]
        self._cache: list[Any] = [0] * len(CACHE_FIELDS) + [0.0]
        self._turn = 0
        self._cached = 0
        #: Whether the run has yet to be booked: what comes later is not of it.
        self.is_open = True
        #: Whether anything was counted.
        self.is_used = False
        #: Done when what the run has cost is durable; None where it is as soon as it is handed over.
        self.durable: asyncio.Future[None] | None = None

    def sending(self) -> None:
        """Announce a call: it is about to be handed to the operating system."""
        if self._map is not None and self.is_open:
            self._map[self._offset + SENDING] = (self._spent[0] + 1) & 0xFF

    def unsent(self) -> None:
        """Take the announcement back: nothing was sent."""
        if self._map is not None and self.is_open:
            self._map[self._offset + SENDING] = self._spent[0] & 0xFF

    def sent(self, expected: Expected = _NOTHING) -> None:
        s = self._spent
        s[0] += 1
        s[4] += 1
        s[5] += expected.prompt_tokens
        s[6] += expected.completion_tokens
        s[8] += math.nan if expected.cost_usd is None else expected.cost_usd
        self._write()

    def ended(self, calls: int, expected: Expected = _NOTHING, bill: Bill = NO_BILL) -> None:
        """Count the end of `calls` calls, and the tokens of the answer where there was one."""
        s = self._spent
        s[1] += bill.prompt_tokens
        s[2] += bill.completion_tokens
        s[3] += bill.estimated
        s[4] -= calls
        s[5] -= calls * expected.prompt_tokens
        s[6] -= calls * expected.completion_tokens
        s[7] += math.nan if bill.cost_usd is None else bill.cost_usd
        s[11] += bill.cached_tokens
        s[12] += bill.cache_write_tokens
        s[13] += bill.reasoning_tokens
        s[14] += math.nan if bill.listed_usd is None else bill.listed_usd
        s[15] += math.nan if bill.tier_saved_usd is None else bill.tier_saved_usd
        # Exactly nothing when nothing is under way: neither a rounding error nor an unknown price stays.
        s[8] = s[8] - calls * (math.nan if expected.cost_usd is None else expected.cost_usd) if s[4] else 0.0
        self._write()

    def cached(self, usage: Usage) -> None:
        """Count what the cache did for a stage that has ended."""
        if not self.is_open:
            return
        self.is_used = True
        for place, name in enumerate(CACHE_FIELDS):
            self._cache[place] += getattr(usage, name)
        self._cache[-1] += math.nan if usage.saved_usd is None else usage.saved_usd
        if self._map is not None:
            self._cached ^= 1
            _pack(CACHE, self._map, self._offset + CACHE_AT[self._cached], self._cache)
            self._map[self._offset + CACHE_VALID] = self._cached + 1

    def books_at(self, at: float) -> None:
        """Set the time under which the run is about to be booked; nothing more is counted."""
        self._spent[10] = at
        self._write()
        self.is_open = False

    def usage(self) -> Usage:
        """All of it so far. Calls that were not answered count with the tokens that were expected."""
        return usage_of(self._spent, self._cache)

    def forget(self) -> None:
        """Free the slot of a booked run, now or once what was booked is durable."""
        self.is_open = False
        if self.durable is not None and not self.durable.done():
            self.durable.add_done_callback(lambda done: None if done.cancelled() else self.forget())
            return
        self._journal.ended(self)
        self._leave()

    def _write(self) -> None:
        if not self.is_open:
            return
        self.is_used = True
        self._spent[9] = time.time()
        if self._map is not None:
            self._turn ^= 1
            _pack(SPENT, self._map, self._offset + SPENT_AT[self._turn], self._spent)
            self._map[self._offset + VALID] = self._turn + 1

    def move_to(self, file: CallFile) -> bool:
        """Write all of the run into a slot of this file, then free the slot that it had; False when it does not fit."""
        if sum(map(len, self._ids)) > MAX_ID_BYTES or (offset := file.take()) is None:
            return False
        map_ = file.map
        job, destination = self._ids
        WHO.pack_into(map_, offset + WHO_AT, self.attempt, self._began, len(job), len(destination), job + destination)
        map_[offset + SENDING] = self._map[self._offset + SENDING] if self._map else self._spent[0] & 0xFF
        self._turn = self._cached = 0
        _pack(CACHE, map_, offset + CACHE_AT[0], self._cache)
        map_[offset + CACHE_VALID] = 1
        _pack(SPENT, map_, offset + SPENT_AT[0], self._spent)
        map_[offset + VALID] = 1
        self._leave()
        self._file, self._map, self._offset = file, map_, offset
        return True

    def _leave(self) -> None:
        if self._file is not None:
            self._file.free(self._offset)
            self._file = self._map = None


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


class CallJournal:
    """The call journal of one process; without a folder (`CallJournal()`) runs are counted and not written down.

    The file's lock ends with the process, or with `close`.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._worker = ""
        self._slots = 0
        self._file: CallFile | None = None
        #: Runs that are not booked, with a slot or without one.
        self._runs: set[Recording] = set()
        #: Why a kill would take calls out of the books; empty while the journal is kept.
        self.off = ""

    def __repr__(self) -> str:
        return f"<CallJournal {self.off or self._file or 'no file'} runs={len(self._runs)}>"

    @property
    def path(self) -> Path | None:
        return None if self._file is None else self._file.path

    @classmethod
    def in_folder(cls, folder: Path, *, worker: str, lanes: int) -> Self:
        """A journal with a new file in the folder; without one, and one clear line, where that cannot be made."""
        made = cls()
        made._folder, made._worker, made._slots = folder, worker, min(MAX_SLOTS, lanes + SPARE_SLOTS)
        try:
            made._file = CallFile.create(folder, worker, made._slots)
        except OSError as exc:
            made._turn_off(exc)
        return made

    async def keep(self) -> None:
        """Go on in a new file where the file was deleted.

        Called with each heartbeat: a file or folder that was deleted, or a full disk, costs the books of the seconds
        between two of them at most.
        """
        if self._folder is None:
            return
        try:
            file = await asyncio.to_thread(self._look, self._folder)
        except OSError as exc:
            self._turn_off(exc)
            return
        if file is not self._file:
            self._go_on_in(file)
        if self.off:
            log.warning("action=recorder_on %s is written again", file.path)
            self.off = ""

    def _look(self, folder: Path) -> CallFile:
        """The file that is to be written from now on. Raises OSError."""
        if self._file is not None and self._file.is_in_place():
            return self._file
        return CallFile.create(folder, self._worker, self._slots)

    def _go_on_in(self, file: CallFile) -> None:
        before, self._file = self._file, file
        for run in self._runs:
            run.move_to(file)
        if before is not None:
            log.warning("action=recorder_moved %s was deleted: %s takes its place", before.path, file.path)
            before.close()

    def _turn_off(self, error: OSError) -> None:
        if not self.off:
            log.warning(
                "action=recorder_off %s cannot be written (%s): should this process be killed, its calls under way "
                "will not be in the books; make room, or set THEMES_STATE_DIR to a folder that it may write",
                self._folder,
                error.strerror or error,
            )
        self.off = f"{self._folder} cannot be written ({error.strerror or error})"

    def begin(self, job_id: str, destination_id: str, attempt: int, chunk_id: str = "") -> Recording:
        run = Recording(self, job_id, destination_id, attempt, chunk_id)
        self._runs.add(run)
        if self._file is not None and not run.move_to(self._file):
            log.warning("action=recorder_full job_id=%s %r: a run is not written down", job_id, self)
        return run

    def ended(self, run: Recording) -> None:
        self._runs.discard(run)

    def close(self) -> None:
        """Let go of the file. Where nothing is left to book it is removed; else the next process books it."""
        self._folder = None
        if self._file is not None:
            self._file.close()
            self._file = None
