"""Entries straight into the database, with no stream between: for a run in one process.

The same entries, batches and rows as the consumer's (`workers.results.consumer`). `put` waits when entries come faster
than the database writes. A kill loses at most a flush interval's entries; their answers are in the state file, and
their costs in the call journal.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Final, Self

from config.settings import Settings
from tasks.errors import DatabaseBusyError
from tasks.messages import Chunk, Result, Spent, StreamEntry
from tasks.storable import entry_fields
from workers.observe.call_journal import current
from workers.observe.profiler import SILENT, PerformanceProfiler
from workers.results.consumer import wait_seconds
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import Applied
from workers.results.journal import JournalReplayer
from workers.results.stream import DeadEntry, RawEntry

log = logging.getLogger("themes.database")

#: Batches that may wait to be written.
BATCHES_WAITING: Final = 4


def unwritten_entries(settings: Settings) -> int:
    """How many entries may be handed in and not yet committed: those that wait, and the batch that is written."""
    return settings.performance_optimization.database_batch_size * (BATCHES_WAITING + 1)


_Waiting = tuple[StreamEntry, asyncio.Future[None]]


class DirectWriter:
    """Writes entries in batches. Use as an async context manager: at its end everything is written.

    `store` is open for writing, and not closed here; `written` is called with every committed batch.
    """

    def __init__(
        self,
        store: AsyncDatabaseManager,
        settings: Settings,
        written: Callable[[Applied], None],
        profiler: PerformanceProfiler = SILENT,
    ) -> None:
        self._store = store
        self._profiler = profiler
        self._batch_size = settings.performance_optimization.database_batch_size
        self._flush_seconds = settings.database.flush_interval_seconds
        self._written = written
        self._queue: asyncio.Queue[_Waiting | None] = asyncio.Queue(self._batch_size * BATCHES_WAITING)
        self._task: asyncio.Task[None] | None = None
        self._count = 0

    def __repr__(self) -> str:
        return f"<DirectWriter waiting={self._queue.qsize()} {self._store!r}>"

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._serve(), name="results writer")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task  # noqa: S101  # made on entering
        if not self._task.done():
            await self._while_it_writes(self._queue.put(None))
        if exc is None:
            await self._task
        else:
            # Its own error is why we are here, or is of no interest beside the one that is.
            await asyncio.wait({self._task})

    async def put(self, entry: StreamEntry) -> asyncio.Future[None]:
        """Hand in an entry; the future is done when it is durable. Raises `DatabaseError`."""
        if self._task is not None and self._task.done():
            # There may be room, but nothing would write it.
            self._task.result()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._while_it_writes(self._queue.put((entry, done)))
        return done

    async def write(self, entry: StreamEntry) -> None:
        await self._while_it_writes(await self.put(entry))

    async def _while_it_writes(self, wait: Awaitable[None]) -> None:
        """Wait for something that only a living writer can bring about; raises what it has ended with."""
        assert self._task  # noqa: S101  # made on entering
        waiting = asyncio.ensure_future(wait)
        try:
            await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not waiting.done():
                waiting.cancel()
        if waiting.done() and not waiting.cancelled():
            waiting.result()
        else:
            self._task.result()

    async def _serve(self) -> None:
        is_open = True
        while is_open:
            first = await self._queue.get()
            if first is None:
                return
            batch, is_open = await self._gather(first)
            await self._settle(batch)

    async def _gather(self, first: _Waiting) -> tuple[list[_Waiting], bool]:
        """A batch: what is there, and what comes within the flush interval; False after the last one."""
        batch = [first]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._flush_seconds):
                while len(batch) < self._batch_size:
                    one = await self._queue.get()
                    if one is None:
                        return batch, False
                    batch.append(one)
        return batch, True

    async def _settle(self, batch: list[_Waiting]) -> None:
        entries = [entry for entry, _ in batch]
        began, rows = time.perf_counter(), self._store.stats().rows
        applied = await self._apply(entries)
        with self._profiler.job(entries[0].job_id):
            self._profiler.record("db.commit", time.perf_counter() - began)
            for name, amount in (
                ("batches", 1),
                ("entries", len(entries)),
                ("rows", self._store.stats().rows - rows),
                ("results", len(applied.outcomes)),
            ):
                self._profiler.count(name, amount)
        if applied.rejected:
            dead = [self._dead(one.entry, one.reason) for one in applied.rejected]
            await self._store.bury(dead)
        for _, done in batch:
            if not done.done():
                done.set_result(None)
        self._written(applied)

    async def _apply(self, entries: list[StreamEntry]) -> Applied:
        """Write, however long another process holds the database."""
        tries = 0
        while True:
            try:
                applied = await self._store.apply(entries)
            except DatabaseBusyError as exc:
                if tries == 0:
                    log.warning("action=database_busy nothing is lost, trying again: %s", exc)
                await asyncio.sleep(wait_seconds(tries, random.random()))  # noqa: S311  # jitter
                tries += 1
            else:
                return applied

    def _dead(self, entry: StreamEntry, reason: str) -> DeadEntry:
        """An entry that the database refuses, as a dead letter. It never had an id of a stream: it gets one of ours."""
        self._count += 1
        log.error("action=entry_dead job_id=%s an entry is set aside (table dead_letters): %s", entry.job_id, reason)
        raw = RawEntry(f"{entry.job_id}-{self._count}-{time.time_ns()}".encode(), entry_fields(entry))
        return DeadEntry(raw, reason, entry.job_id, getattr(entry, "destination_id", None))


class DirectBooks:
    """Results and costs into the database; the call journal keeps a run until its entry is durable."""

    def __init__(self, writer: DirectWriter) -> None:
        self._writer = writer

    async def finish(self, chunk: Chunk, results: Sequence[Result]) -> list[bool]:
        del chunk
        for result in results:
            await self._put(result)
        return [True] * len(results)

    async def book(self, spent: Spent) -> None:
        await self._put(spent)

    async def _put(self, entry: Result | Spent) -> None:
        durable, run = await self._writer.put(entry), current()
        if run is not None:
            run.durable = durable


class _DatabaseDelivery:
    """Delivers costs of dead processes straight into the database. Called from a thread; works on `loop`."""

    def __init__(self, store: AsyncDatabaseManager, writer: DirectWriter, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._writer = writer
        self._loop = loop

    def knows(self, job_id: str) -> bool:
        return asyncio.run_coroutine_threadsafe(self._store.job(job_id), self._loop).result() is not None

    def deliver(self, spent: list[Spent]) -> None:
        asyncio.run_coroutine_threadsafe(self._write(spent), self._loop).result()

    async def _write(self, spent: list[Spent]) -> None:
        await asyncio.gather(*(self._writer.write(one) for one in spent))


async def book_orphans_in_database(settings: Settings, store: AsyncDatabaseManager) -> int:
    """Book what dead processes of this state directory had in hand; returns the number of calls.

    Raises `ThemesError`: the database cannot be used; the files stay.
    """
    async with DirectWriter(store, settings, lambda _: None) as writer:
        delivery = _DatabaseDelivery(store, writer, asyncio.get_running_loop())
        return await asyncio.to_thread(JournalReplayer(settings.state_dir, delivery).book)
