"""Questions and batches in the state file, for the one process that works there: see `BatchStore`.

Batches of other jobs in the file go on too: equal prompts are one line, whoever has asked first. Nothing new is formed
for those jobs.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from tasks import keys
from tasks.errors import DatabaseError, JobPausedError
from tasks.frames import packed
from tasks.jobs.batches import Batch, Batches, read, summed
from tasks.jobs.registry import FINAL, options_of
from tasks.messages import Destination, Spent, pack, unpack
from workers.llm.batches.bills import spent_of
from workers.llm.batches.questions import (
    FORM_AGAIN_SECONDS,
    FORM_SECONDS,
    FULL,
    IN_CACHE,
    LATE,
    LATE_SECONDS,
    SLICE,
    Ask,
    Ending,
    Form,
    JobState,
    Kept,
    Line,
    Settled,
    Taken,
    answer_of,
)
from workers.llm.cache.completions import StoreAwayError
from workers.llm.funds import BY_JOB, Refused, Standing
from workers.local import waiting
from workers.local.state_file import FileBook, StateFile, batch_sums
from workers.results.database.rows import JobRow

T = TypeVar("T")

_WITHOUT_END: Final = ("batches WHERE is_open = 1 AND job_id = ?", "batch_questions WHERE tag = '' AND job_id = ?")
#: What of a line is read.
_LINE: Final = "key, payer, question, tries FROM batch_questions WHERE tag = ?"


@dataclass(kw_only=True, eq=False)
class FileBatchStore:
    """`find_job` reads a job's row, `write` writes an entry into the results database until it is durable.

    `news` is set when a destination may go on; `book` is the job's budget, where it has one.
    """

    file: StateFile
    job_id: str
    deadline_at: float | None
    book_of_job: FileBook | None
    news: asyncio.Event
    find_job: Callable[[str], Awaitable[JobRow | None]]
    write: Callable[[Spent], Awaitable[None]]
    compress: bool
    #: The job's batches at the last look, and what waits for one.
    batches: Batches | None = None
    fields: dict[str, bytes] = field(default_factory=dict)
    #: When each form was written.
    _written: dict[str, float] = field(default_factory=dict)
    #: Nothing of the job waits for a batch any more.
    _is_over: bool = False
    #: Other jobs whose batches do not go on.
    _paused: set[str] = field(default_factory=set)

    def __repr__(self) -> str:
        return f"<FileBatchStore {self.job_id}>"

    async def open(self) -> None:
        """Begin with no destination that waits."""
        await self._look(lambda connection: waiting.begin(connection, self.job_id))

    async def _change(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        return await self.file.change(work, self._error, durable=durable)

    async def _look(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self.file.look(work, self._error)

    def _error(self, exc: sqlite3.Error) -> StoreAwayError:
        return StoreAwayError(f"{self.file.path}: {exc}")

    # Destinations that wait.

    async def park(self, destination: Destination) -> None:
        """Let a destination wait until each of its questions has an end; they may have it already."""
        if await self._look(lambda connection: waiting.park(connection, destination)):
            self.news.set()

    async def woken(self, count: int) -> Sequence[Destination]:
        """At most `count` of the destinations that may go on; they wait no more."""
        return await self._look(lambda connection: waiting.take(connection, count))

    async def is_waiting(self) -> bool:
        """Whether destinations wait, or batches of the job have no end; without such destinations they are to end."""

        def look(connection: sqlite3.Connection) -> tuple[bool, bool]:
            is_parked = waiting.exists(connection, "parked")
            return is_parked, is_parked or any(waiting.exists(connection, one, self.job_id) for one in _WITHOUT_END)

        is_parked, is_waiting = await self._look(look)
        self._is_over = not is_parked
        return is_waiting

    async def pause(self, job_id: str) -> bool:
        """Leave another job's batches where they are; False where this job waits for one of them, or is the one."""
        if job_id == self.job_id:
            return False
        self._paused.add(job_id)
        which = "waiting JOIN batch_questions USING (key) WHERE job_id = ?"
        return not await self._look(lambda connection: waiting.exists(connection, which, job_id))

    # See `BatchStore`.

    async def ask(self, asks: Sequence[Ask], forms: Sequence[Form], *, most: int) -> list[bytes | None]:
        now = time.time()
        new = [one for one in forms if self._written.get(one.digest, 0.0) + FORM_AGAIN_SECONDS <= now]

        def ask(connection: sqlite3.Connection) -> list[bytes | None]:
            rows = [(one.digest, pack(one), now + FORM_SECONDS) for one in new]
            connection.executemany("INSERT OR REPLACE INTO batch_forms VALUES (?, ?, ?)", rows)
            return [self._ask(connection, one, most, now) for one in asks]

        found = await self._change(ask)
        self._written |= {one.digest: now for one in new}
        return found

    def _ask(self, connection: sqlite3.Connection, ask: Ask, most: int, now: float) -> bytes | None:
        answer = connection.execute("SELECT answer, expires_at FROM batch_answers WHERE key = ?", (ask.key,)).fetchone()
        if answer is not None and answer[1] > now:
            return answer_of(answer[0])
        row = connection.execute("SELECT job_id FROM batch_questions WHERE key = ?", (ask.key,)).fetchone()
        owner = row[0] if row else ""
        if not owner and waiting.exists(connection, "completions WHERE key = ? AND expires_at > ?", ask.cache_key, now):
            # It was put there since its caller has looked.
            return IN_CACHE
        if ask.is_late and owner != ask.job_id:
            # The job's own batch is about to end; another's may take as long as it likes.
            waiting.remove(connection, ask.key, ask.chunk_id)
            return LATE
        if owner:
            # What waits for a job that does not run is this one's now.
            connection.execute(
                "UPDATE batch_questions SET job_id = ?, shelf = ?, payer = ?, worst_nano = ?"
                " WHERE key = ? AND tag = '' AND job_id != ?",
                (ask.job_id, ask.shelf, ask.payer, ask.question.worst_nano, ask.key, ask.job_id),
            )
        elif waiting.open_questions(connection) >= most:
            return FULL
        else:
            question = ask.question
            connection.execute(
                "INSERT INTO batch_questions VALUES (NULL, ?, ?, ?, '', ?, ?, ?, ?, 0)",
                (
                    ask.key, ask.job_id, ask.shelf, msgspec.msgpack.encode(question), question.worst_nano,
                    question.size_bytes, ask.payer,
                ),
            )  # fmt: skip
        waiting.add(connection, ask.key, ask.chunk_id)
        return None

    async def keep(self, some: Sequence[Kept], *, ttl_ms: int) -> None:
        until = time.time() + ttl_ms / 1000
        stored = [(one.cache_key, one.stored, until) for one in some if one.stored]
        marks = [(one.key, one.mark, until) for one in some if one.mark]

        def keep(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO completions VALUES (?, ?, ?)", stored)
            connection.executemany("DELETE FROM batch_answers WHERE key = ?", [(one.key,) for one in some])
            connection.executemany("INSERT OR REPLACE INTO batch_answers VALUES (?, ?, ?)", marks)

        await self._change(keep)

    async def hold(self) -> bool:
        """The state directory is this process's alone."""
        return True

    async def release(self, *, for_seconds: float = 0.0) -> bool:  # noqa: ARG002
        return False

    async def jobs(self) -> list[JobState]:
        def look(connection: sqlite3.Connection) -> tuple[list[Any], list[Any]]:
            counted = "SELECT job_id, shelf, COUNT(*) FROM batch_questions WHERE tag = '' GROUP BY job_id, shelf"
            known = "SELECT job_id, tag, batch FROM batches WHERE is_open = 1 OR job_id = ?"
            return connection.execute(known, (self.job_id,)).fetchall(), connection.execute(counted).fetchall()

        if self.deadline_at is not None and time.time() >= self.deadline_at:
            await self._look(lambda connection: waiting.free_beside(connection, self.job_id))
        known, counted = await self._look(look)
        job_ids = dict.fromkeys([self.job_id, *(row[0] for row in (*known, *counted))])
        found = []
        for job_id in job_ids:
            fields = {tag: batch for its, tag, batch in known if its == job_id}
            batches, shelves = read(fields), {shelf: count for its, shelf, count in counted if its == job_id}
            if job_id == self.job_id:
                self.fields, self.batches = fields, summed(batches, sum(shelves.values()))
            is_open = shelves or any(one.state != "ended" for one in batches)
            if is_open and (state := await self._state(job_id, batches, shelves)):
                found.append(state)
        return found

    async def _state(self, job_id: str, batches: list[Batch], shelves: dict[str, int]) -> JobState | None:
        """How a job's batches go on; None where the results database does not know it."""
        if job_id == self.job_id:
            return JobState(job_id, batches, shelves, self._is_over, is_paused=False, deadline_at=self.deadline_at)
        row = await self.find_job(job_id)
        if row is None:
            return None
        is_over, deadline_at = row.state in FINAL, options_of(row.options).deadline_at
        return JobState(job_id, batches, shelves if is_over else {}, is_over, job_id in self._paused, deadline_at)

    async def take(self, batch: Batch, shelf: str, most: int, most_bytes: int) -> Taken:
        if batch.job_id != self.job_id:
            return Taken(batch, 0)

        def take(connection: sqlite3.Connection) -> Taken:
            query = (
                "SELECT place, worst_nano, size_bytes FROM batch_questions"
                " WHERE tag = '' AND job_id = ? AND shelf = ? ORDER BY place LIMIT ?"
            )
            rows = connection.execute(query, (self.job_id, shelf, most)).fetchall()
            limit, certain, under_way = _money(connection, self.job_id)
            places, size, reserved, stopped = list[tuple[str, int]](), 0, 0, ""
            for place, worst, size_bytes in rows:
                stopped = (
                    "full" if size + size_bytes > most_bytes and places
                    else "" if limit is None
                    else "refused" if certain + worst > limit
                    else "waits" if certain + under_way + reserved + worst > limit
                    else ""
                )  # fmt: skip
                if stopped:
                    break
                places.append((batch.tag, place))
                size, reserved = size + size_bytes, reserved + worst
            taken = msgspec.structs.replace(
                batch, requests=batch.requests + len(places), size_bytes=batch.size_bytes + size
            )
            if places:
                connection.executemany("UPDATE batch_questions SET tag = ? WHERE place = ?", places)
                _put(connection, taken, reserved=reserved)
            refused = None
            if stopped == "refused" and limit is not None:
                refused = Refused(BY_JOB, Standing(0, limit, certain), worst)
            return Taken(taken, len(places), stopped, refused)  # type: ignore[arg-type]

        return await self._change(take)

    async def save(self, batch: Batch, *, durable: bool = False) -> None:
        await self._change(lambda connection: _put(connection, batch), durable=durable)

    async def lines(self, batch: Batch) -> AsyncIterator[list[Line]]:
        place = -1
        query = f"SELECT place, {_LINE} AND job_id = ? AND shelf = ? AND place > ? ORDER BY place LIMIT ?"
        shelf = f"{batch.endpoint}/{batch.model}"

        def page(connection: sqlite3.Connection) -> list[Any]:
            return connection.execute(query, (batch.tag, batch.job_id, shelf, place, SLICE)).fetchall()

        while rows := await self._look(page):
            yield [Line.of(*row[1:]) for row in rows]
            place = rows[-1][0]

    async def find(self, batch: Batch, wanted: Sequence[str]) -> list[Line]:
        query = f"SELECT {_LINE} AND key IN ({','.join('?' * len(wanted))})"
        found = await self._look(lambda connection: connection.execute(query, (batch.tag, *wanted)).fetchall())
        return [Line.of(*row) for row in found]

    async def forms(self, digests: Sequence[str]) -> dict[str, Form]:
        query = f"SELECT digest, form FROM batch_forms WHERE digest IN ({','.join('?' * len(digests))})"  # noqa: S608
        found = await self._look(lambda connection: connection.execute(query, tuple(digests)).fetchall())
        return {digest: unpack(raw, Form) for digest, raw in found}

    async def settle(self, batch: Batch, ends: Sequence[Settled]) -> Batch:
        def settle(connection: sqlite3.Connection) -> tuple[Batch, int]:
            (raw,) = connection.execute("SELECT batch FROM batches WHERE tag = ?", (batch.tag,)).fetchone()
            settled, free, cost = msgspec.json.decode(raw, type=Batch), 0, 0
            for one in ends:
                query = "SELECT worst_nano, payer FROM batch_questions WHERE key = ? AND tag = ?"
                line = connection.execute(query, (one.key, batch.tag)).fetchone()
                if line is not None:
                    free, cost = free + line[0], cost + one.cost_nano
                    settled = _counted(settled, one)
                    self._settle(connection, batch, one, line[1])
            _put(connection, settled, reserved=-free, spent=cost)
            return settled, batch_sums(connection, batch.job_id)[0]

        settled, spent = await self._change(settle)
        if self.book_of_job is not None and batch.job_id == self.job_id:
            self.book_of_job.batches_nano = spent
        return settled

    def _settle(self, connection: sqlite3.Connection, batch: Batch, one: Settled, payer: str) -> None:
        if one.bill:
            # The moment of the first one is that of the entry in the books, however often it is written.
            kept = "SELECT bills, at FROM batch_bills WHERE tag = ? AND payer = ?"
            bills, at = connection.execute(kept, (batch.tag, payer)).fetchone() or ("", time.time())
            row = batch.tag, payer, f"{bills}{one.bill.decode()}\n", at
            connection.execute("INSERT OR REPLACE INTO batch_bills VALUES (?, ?, ?, ?)", row)
        if one.end in {"again", "anew"}:
            again = "UPDATE batch_questions SET tag = '', tries = tries + ? WHERE key = ?"
            connection.execute(again, (one.end == "again", one.key))
        else:
            self._end(connection, one)

    def _end(self, connection: sqlite3.Connection, one: Settled) -> None:
        """End a question; destinations that wait for nothing more may go on."""
        if one.end != "gone":
            stored = packed(one.answer, compress=self.compress) if one.answer else LATE
            until = time.time() + (keys.KEEP_SECONDS if one.answer else LATE_SECONDS)
            connection.execute("INSERT OR REPLACE INTO batch_answers VALUES (?, ?, ?)", (one.key, stored, until))
        connection.execute("DELETE FROM batch_questions WHERE key = ?", (one.key,))
        waiting.end(connection, one.key)

    async def discard(self, job_id: str, shelf: str, *, end: Ending) -> int:
        shelved = "FROM batch_questions WHERE tag = '' AND job_id = ? AND shelf = ?"

        def discard(connection: sqlite3.Connection) -> int:
            for (key,) in connection.execute(f"SELECT key {shelved} LIMIT ?", (job_id, shelf, SLICE)).fetchall():
                self._end(connection, Settled(key, end))
            return int(connection.execute(f"SELECT COUNT(*) {shelved}", (job_id, shelf)).fetchone()[0])

        return await self._change(discard)

    async def book(self, batch: Batch) -> None:
        query = "SELECT payer, bills, at FROM batch_bills WHERE tag = ? LIMIT ?"
        while rows := await self._look(lambda connection: connection.execute(query, (batch.tag, SLICE)).fetchall()):
            spent = [spent_of(batch, payer, bills.encode(), at=at) for payer, bills, at in rows]
            try:
                await asyncio.gather(*map(self.write, spent))
            except DatabaseError as exc:
                raise JobPausedError(str(exc), job_id=self.job_id, reason="batch") from exc
            await self._change(partial(_remove_bills, booked=[(batch.tag, row[0]) for row in rows]))

    async def close(self, batch: Batch) -> None:
        await self.save(batch)
        # The run may have waited for nothing else: its last figures are these.
        await self.jobs()
        self.news.set()

    async def wake(self) -> None:
        if await self._look(waiting.has_free):
            self.news.set()


def _remove_bills(connection: sqlite3.Connection, booked: Sequence[tuple[str, str]]) -> None:
    connection.executemany("DELETE FROM batch_bills WHERE tag = ? AND payer = ?", booked)


def _put(connection: sqlite3.Connection, batch: Batch, *, reserved: int = 0, spent: int = 0) -> None:
    """Write a batch down, and add to what it has reserved and spent."""
    connection.execute("INSERT OR IGNORE INTO batches (tag, job_id, is_open, batch) VALUES (?, ?, 1, '')",
                       (batch.tag, batch.job_id))  # fmt: skip
    connection.execute(
        "UPDATE batches SET is_open = ?, batch = ?, reserved_nano = reserved_nano + ?, spent_nano = spent_nano + ?"
        " WHERE tag = ?",
        (batch.state != "ended", msgspec.json.encode(batch), reserved, spent, batch.tag),
    )


def _counted(batch: Batch, one: Settled) -> Batch:
    """A batch with a line more that has its end."""
    if one.end != "answered":
        return msgspec.structs.replace(batch, unanswered=batch.unanswered + 1)
    is_known = batch.saved_usd is not None and one.saved_usd is not None
    saved = batch.saved_usd + one.saved_usd if is_known else None  # type: ignore[operator]
    return msgspec.structs.replace(batch, answered=batch.answered + 1, saved_usd=saved)


def _money(connection: sqlite3.Connection, job_id: str) -> tuple[int | None, int, int]:
    """A job's limit, None where it has none; what it has spent, and what calls and batches have reserved."""
    query = "SELECT limit_nano, spent_nano, reserved_nano FROM budgets WHERE job_id = ?"
    limit, spent, reserved = connection.execute(query, (job_id,)).fetchone() or (None, 0, 0)
    in_batches, lines = batch_sums(connection, job_id)
    return limit, spent + in_batches, reserved + lines
