"""Writes a batch whole; an entry that the database refuses, in the form that it takes.

A batch goes in one transaction. Where it fails for one entry, it is written again with a savepoint for each entry. A
refused result is written as the failure that says why; refused destinations are listed cleaned.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from tasks.errors import DatabaseBusyError, DatabaseError
from tasks.messages import JobInputs, StreamEntry
from tasks.storable import flaw, lesser
from workers.results.database.backend import Backend
from workers.results.database.rows import Applied, JobRow, Rejected, StoredResult
from workers.results.database.writer import Writer
from workers.results.stream import DeadEntry

log = logging.getLogger("themes.database")

#: Characters that a text of a refused entry keeps at last: PostgreSQL indexes no more than 2,704 bytes.
SHORTENED: Final = 400


@dataclass(slots=True)
class _Written:
    """What single entries have come to."""

    jobs: dict[str, JobRow] = field(default_factory=dict)
    shown: dict[tuple[str, str], StoredResult] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    rows: int = 0


class BatchWriter:
    """Writes batches. `writing` is a write transaction on the backend (see `AsyncDatabaseManager.writing`)."""

    def __init__(
        self, backend: Backend, writer: Writer, writing: Callable[[], AbstractAsyncContextManager[AsyncConnection]]
    ) -> None:
        self._backend = backend
        self._writer = writer
        self._writing = writing

    async def write(self, entries: Sequence[StreamEntry], dead: Sequence[DeadEntry]) -> tuple[Applied, int]:
        """Write a batch in one transaction; what came of it, and how many rows it were.

        Raises:
            DatabaseBusyError: nothing was written; the same batch may be written later.
            DatabaseError: nothing was written, and nothing will be until a person mends it.
        """
        try:
            return await self._at_once(entries, dead)
        except DatabaseBusyError:
            raise
        except Exception as exc:  # noqa: BLE001  # of one entry, or of the database: trying each tells
            log.debug("action=batch_refused each of %d entries is tried by itself: %s", len(entries), exc)
        return await self._one_by_one(entries, dead)

    async def _at_once(self, entries: Sequence[StreamEntry], dead: Sequence[DeadEntry]) -> tuple[Applied, int]:
        async with self._writing() as connection:
            changes, rows = await self._writer.write(connection, entries, time.time())
            rows += await self._writer.bury(connection, dead, time.time())
            began = time.perf_counter()
        self._writer.times.add("commit", time.perf_counter() - began, rows)
        return Applied(changes.jobs, changes.outcomes(), [], changes.totals), rows

    async def _one_by_one(self, entries: Sequence[StreamEntry], dead: Sequence[DeadEntry]) -> tuple[Applied, int]:
        """Each entry in a savepoint of its own, all in one transaction."""
        written = _Written()
        async with self._writing() as connection:
            written.rows += await self._writer.bury(connection, dead, time.time())
            for index, entry in enumerate(entries):
                if why := await self._entry(connection, entry, written):
                    written.rejected.append(Rejected(index, entry, why))
        return Applied(written.jobs, list(written.shown.values()), written.rejected, written.totals), written.rows

    async def _entry(self, connection: AsyncConnection, entry: StreamEntry, written: _Written) -> str:
        """Write an entry, in a lesser form where it is refused as it is; returns why it was."""
        refusal = await self._try(connection, entry, written)
        if refusal is None:
            return ""
        why = flaw(entry) or str(refusal)
        if isinstance(entry, JobInputs) and len(entry.destinations) > 1:
            for one in entry.destinations:
                await self._entry(connection, JobInputs(entry.job_id, (one,)), written)
            return why
        for most in (None, SHORTENED):
            if (refusal := await self._try(connection, lesser(entry, why, most), written)) is None:
                return why
        if isinstance(refusal, DatabaseError):
            raise refusal  # not of the entry: what is stored everywhere is not stored here
        log.error("action=entry_lost job_id=%s an entry is stored in no form: %s", entry.job_id, why)
        return why

    async def _try(self, connection: AsyncConnection, entry: StreamEntry, written: _Written) -> Exception | None:
        """Write an entry in a savepoint; returns the error for which nothing of it was written."""
        try:
            with self._backend.translated():
                async with connection.begin_nested():
                    changes, rows = await self._writer.write(connection, [entry], time.time())
        except DatabaseBusyError:
            raise
        except Exception as exc:  # noqa: BLE001  # a driver's errors for one row are of any class
            return exc
        written.rows += rows
        written.jobs |= changes.jobs
        written.totals |= changes.totals
        for outcome in changes.outcomes():
            key = (outcome.result.job_id, outcome.result.destination_id)
            written.shown.pop(key, None)
            written.shown[key] = outcome
        return None
