"""Where the results are kept: a file, or a PostgreSQL server. Chosen by the URL; both do what `Backend` says."""

import contextlib
from typing import Final, Protocol

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine

from tasks.errors import DatabaseError
from workers.results.database.postgresql import PostgreSQLServer
from workers.results.database.sqlite import SQLiteFile

_EXAMPLE: Final = "write sqlite+aiosqlite:////absolute/path.db or postgresql+asyncpg://user:password@host/database"


class Backend(Protocol):
    #: Begins each transaction with the lock of the one writer.
    writer: AsyncEngine
    #: Cannot write.
    readers: AsyncEngine

    @property
    def place(self) -> str:
        """For messages; no password."""

    def exists(self) -> bool:
        """Whether there is anything to open."""

    def prepare(self) -> None:
        """Make room for it. Raises `DatabaseError` with the place and the mend."""

    def remember(self) -> None:
        """The database as it stands is the one that is meant."""

    def refuse_another(self) -> None:
        """Raise `DatabaseError` when it is not that one any more."""

    async def tidy(self) -> float:
        """Do between two transactions what must be done now and then; returns the seconds that it took."""

    def is_locked(self, error: Exception) -> bool:
        """Whether the writer's lock is held by another, and worth another try."""

    def translated(self) -> contextlib.AbstractContextManager[None]:
        """Errors as `UnusableEntryError` (one row), `DatabaseBusyError` (later) or `DatabaseError` (a person)."""

    async def close(self) -> None:
        """Close every connection."""


def backend_of(url: str, *, pool_size: int, timeout_seconds: float, is_acknowledged: bool = True) -> Backend:
    """The database that a URL names; nothing is opened yet. `is_acknowledged`: see `SQLiteFile`.

    Raises:
        DatabaseError: no URL, or of a database that is not known here.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as bad:
        raise DatabaseError(f"database.url: not a URL; {_EXAMPLE}") from bad
    name = parsed.get_backend_name()
    if name == "sqlite":
        return SQLiteFile(parsed, pool_size=pool_size, timeout_seconds=timeout_seconds, is_acknowledged=is_acknowledged)
    if name == "postgresql":
        return PostgreSQLServer(parsed, pool_size=pool_size, timeout_seconds=timeout_seconds)
    raise DatabaseError(f"database.url: {name} is not supported; {_EXAMPLE}")
