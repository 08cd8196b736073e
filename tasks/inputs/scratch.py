"""Private databases in temporary files, for what a large input must not keep in memory."""

import contextlib
import sqlite3
from collections.abc import Iterator

from tasks.errors import InputError


def temporary(*tables: str, cache_kib: int) -> sqlite3.Connection:
    """A private database in a temporary file, which SQLite deletes with the connection."""
    connection = sqlite3.connect("", isolation_level=None)
    pragmas = (f"PRAGMA cache_size = -{cache_kib}", "PRAGMA synchronous = OFF", "PRAGMA journal_mode = OFF")
    for statement in (*pragmas, *tables, "BEGIN"):
        connection.execute(statement)
    return connection


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Within the body, a full temporary folder is an `InputError`."""
    try:
        yield
    except sqlite3.OperationalError as exc:
        raise InputError(f"so many destinations find no room in the temporary folder ({exc})") from exc
