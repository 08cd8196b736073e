"""The PostgreSQL server: its engines, the one writer's lock, and what its errors mean.

A writer holds one advisory lock for its transaction, so consumers take turns as they do in a file: of two that read the
same counters one would lose the other's sums. Readers see one consistent view each and never wait.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import URL, Connection, event, exc
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from tasks.errors import DatabaseBusyError, DatabaseError
from workers.results.database.reducer import UnusableEntryError

#: Key of the advisory lock that the writer holds: "themes" in ASCII.
WRITER_LOCK: Final = int.from_bytes(b"themes")
#: Classes of SQLSTATE that are about one row's values: data exception, integrity constraint violation.
_BAD_ROW: Final = ("22", "23")
#: Classes that pass by themselves or with a person's help, without any loss: connection, rolled back, no resources,
#: not in a state for it (a lock), an operator's intervention, a disk.
_PASSING: Final = ("08", "40", "53", "55", "57", "58")
#: What SQLAlchemy puts before the words of asyncpg.
_CLASS: Final = re.compile(r"^<class '[^']*'>: ")
_MENDS: Final = {
    "28": "check the user and password in database.url (DATABASE_URL)",
    "3D": "make it with `createdb`, or name another in database.url (DATABASE_URL)",
    "42": "grant this user CREATE and USAGE on its schema, or name a database of its own in database.url",
    "53": "give the server more room or connections",
    "55": "another consumer writes; it is tried again",
    "57": "the server was told to stop; it is tried again when it is back",
    "25": "point database.url at the primary: this server only reads",
}


class PostgreSQLServer:
    """A results database on a PostgreSQL server, for those who have outgrown one machine.

    Args:
        url: postgresql+asyncpg://user:password@host/database.
        pool_size: connections in all; one of them writes, at least one reads.
        timeout_seconds: how long to wait for the server, a lock or a free connection.

    Raises:
        DatabaseError: the driver is not installed.
    """

    def __init__(self, url: URL, *, pool_size: int, timeout_seconds: float) -> None:
        if url.drivername == "postgresql":
            url = url.set(drivername="postgresql+asyncpg")
        self._url = url
        patience: dict[str, Any] = {
            "max_overflow": 0,
            "pool_timeout": timeout_seconds,
            "pool_pre_ping": True,
            "connect_args": {"timeout": timeout_seconds},
        }
        try:
            self.writer = create_async_engine(url, pool_size=1, **patience)
            self.readers = create_async_engine(
                url,
                pool_size=max(1, pool_size - 1),
                isolation_level="REPEATABLE READ",
                execution_options={"postgresql_readonly": True},
                **patience,
            )
        except ModuleNotFoundError as bad:
            raise DatabaseError(
                f"database.url: {url.drivername} needs the driver {bad.name!r}; install the extra: "
                "scripts/setup --extra postgresql, and write postgresql+asyncpg://user:password@host/database"
            ) from bad
        milliseconds = int(timeout_seconds * 1000)

        @event.listens_for(self.writer.sync_engine, "begin")
        def _lock(connection: Connection) -> None:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {milliseconds}")
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")

    def __repr__(self) -> str:
        return f"<PostgreSQLServer {self.place}>"

    @property
    def place(self) -> str:
        return self._url.render_as_string(hide_password=True)

    def exists(self) -> bool:
        """Whether it can be asked: a server is not looked for before."""
        return True

    def prepare(self) -> None:
        """A database is made by its owner, not by us."""

    def remember(self) -> None:
        """A server says by itself when it is another."""

    def refuse_another(self) -> None:
        """A table that is gone is an error of the statement."""

    async def tidy(self) -> float:
        """The server sees to its log by itself."""
        return 0.0

    def is_locked(self, error: Exception) -> bool:
        """Whether another consumer holds the writer's lock; waited for in the server, so never looked at twice."""
        del error
        return False

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn errors of SQLAlchemy, asyncpg and the network into what a caller can do about them; see `Backend`."""
        try:
            yield
        except exc.TimeoutError as bad:
            raise DatabaseBusyError(f"{self.place}: every connection is in use") from bad
        except SQLAlchemyError as bad:
            raise self._explain(bad) from bad
        except (UnicodeError, OverflowError) as bad:
            raise UnusableEntryError(f"{type(bad).__name__}: {bad}") from bad
        except (OSError, TimeoutError) as bad:
            raise DatabaseBusyError(f"{self.place}: the server cannot be reached ({bad}); start it") from bad
        except Exception as bad:
            # asyncpg's own errors, as it raises them while it connects.
            if not hasattr(bad, "sqlstate"):
                raise
            raise self._explain(bad) from bad

    def _explain(self, error: Exception) -> Exception:
        original: Any = error.orig if isinstance(error, DBAPIError) else error
        state = str(getattr(original, "sqlstate", None) or "")
        # A value that the server could not take is refused by asyncpg itself, without an SQLSTATE.
        said = _CLASS.sub("", str(original)).partition("\n")[0] or type(original).__name__
        if state.startswith(_BAD_ROW) or isinstance(error, exc.DataError | exc.IntegrityError) or _is_refused(original):
            return UnusableEntryError(said)
        lost = isinstance(error, DBAPIError) and error.connection_invalidated
        message = f"{self.place}: {said}; {_MENDS.get(state[:2], 'it is tried again')}"
        if lost or not state or state.startswith(_PASSING):
            return DatabaseBusyError(message)
        return DatabaseError(message)

    async def close(self) -> None:
        await self.readers.dispose()
        await self.writer.dispose()


def _is_refused(original: Any) -> bool:
    """Whether asyncpg itself refused a parameter's value (a lone surrogate, an integer beyond 64 bits)."""
    cause = original.__cause__
    return type(cause).__name__ == "DataError" or isinstance(cause, UnicodeError | OverflowError)
