"""Fails one exact SQL statement of this process: an error before or after it took effect, or SIGKILL there.

Below SQLAlchemy and aiosqlite, in sqlite3 itself, so that the pragmas, BEGIN, COMMIT and ROLLBACK count too. The count
stands in a file, which also tells the next life of a killed process that its fault has happened.
"""

import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

from tests.faults.proxy import Mode

#: Errors that pass, with SQLite's codes; taken in turn.
ERRORS = [
    ("disk I/O error", sqlite3.SQLITE_IOERR),
    ("database is locked", sqlite3.SQLITE_BUSY),
    ("database or disk is full", sqlite3.SQLITE_FULL),
]


class Statements:
    """Counts the statements of this process, and fails one."""

    def __init__(self, path: Path, nth: int, mode: Mode | None) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        self._nth, self._mode = nth, mode
        self._count, self._is_over = read(path)

    def before(self) -> None:
        """Called before each statement."""
        self._count += 1
        self._write()
        if self._mode in {Mode.REFUSED, Mode.KILLED_BEFORE}:
            self._judge()

    def after(self) -> None:
        """Called after each."""
        if self._mode in {Mode.LOST_AFTER, Mode.KILLED_AFTER}:
            self._judge()

    def _judge(self) -> None:
        if self._is_over or self._count != self._nth:
            return
        self._is_over = True
        self._write()
        if self._mode in {Mode.KILLED_BEFORE, Mode.KILLED_AFTER}:
            os.kill(os.getpid(), signal.SIGKILL)
        text, code = ERRORS[self._nth % len(ERRORS)]
        error = sqlite3.OperationalError(text)
        error.sqlite_errorcode = code  # type: ignore[misc]
        raise error

    def _write(self) -> None:
        os.pwrite(self._file, f"{self._count} {int(self._is_over)}  ".encode(), 0)

    def install(self) -> None:
        """Let every connection of sqlite3 that is made from now on count."""
        counts = self
        connect = sqlite3.connect

        class Cursor(sqlite3.Cursor):
            def execute(self, *arguments: Any) -> sqlite3.Cursor:
                counts.before()
                done = super().execute(*arguments)
                counts.after()
                return done

            def executemany(self, *arguments: Any) -> sqlite3.Cursor:
                counts.before()
                done = super().executemany(*arguments)
                counts.after()
                return done

        class Connection(sqlite3.Connection):
            def cursor(self, factory: Any = Cursor) -> Any:
                return super().cursor(factory)

            def commit(self) -> None:
                counts.before()
                super().commit()
                counts.after()

            def rollback(self) -> None:
                counts.before()
                super().rollback()
                counts.after()

        def connected(*arguments: Any, **options: Any) -> sqlite3.Connection:
            return connect(*arguments, **options, factory=Connection)

        sqlite3.connect = connected  # type: ignore[assignment]


def read(path: Path) -> tuple[int, bool]:
    """How many statements there were, and whether one of them has failed."""
    text = path.read_text().split() if path.exists() else []
    return (int(text[0]), text[1] == "1") if text else (0, False)
