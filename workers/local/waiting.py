"""Which destinations wait for which questions: temporary tables of the state file, on the disk and not in memory.

They end with the process: the next one asks for every destination again, and finds its questions where they are.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final

from tasks.messages import Destination, pack, unpack

_TABLES: Final = (
    "CREATE TEMP TABLE waiting (key TEXT, destination_id TEXT, PRIMARY KEY (key, destination_id)) WITHOUT ROWID",
    "CREATE INDEX waiting_for ON waiting (destination_id)",
    "CREATE TEMP TABLE parked (destination_id TEXT PRIMARY KEY, destination BLOB, is_free INTEGER)",
    "CREATE INDEX parked_free ON parked (is_free)",
    "CREATE TEMP TABLE questions (job_id TEXT, count INTEGER)",
    """CREATE TEMP TRIGGER asked AFTER INSERT ON main.batch_questions BEGIN
        UPDATE questions SET count = count + 1 WHERE job_id = new.job_id; END""",
    """CREATE TEMP TRIGGER moved AFTER UPDATE OF job_id ON main.batch_questions BEGIN
        UPDATE questions SET count = count + (job_id = new.job_id) - (job_id = old.job_id); END""",
    """CREATE TEMP TRIGGER ended AFTER DELETE ON main.batch_questions BEGIN
        UPDATE questions SET count = count - 1 WHERE job_id = old.job_id; END""",
)


def begin(connection: sqlite3.Connection, job_id: str) -> None:
    """Begin with no destination that waits; an earlier job of this process may have left its own."""
    for table in ("waiting", "parked", "questions"):
        connection.execute(f"DROP TABLE IF EXISTS temp.{table}")
    for trigger in ("asked", "moved", "ended"):
        connection.execute(f"DROP TRIGGER IF EXISTS temp.{trigger}")
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute("INSERT INTO questions SELECT ?1, COUNT(*) FROM batch_questions WHERE job_id = ?1", (job_id,))


def open_questions(connection: sqlite3.Connection) -> int:
    """How many questions of the job have no end: counted as they come and go, and back where a step is taken back."""
    return int(connection.execute("SELECT count FROM questions").fetchone()[0])


def add(connection: sqlite3.Connection, key: str, destination_id: str) -> None:
    """A destination wants the answer to a question; it may be at work still."""
    connection.execute("INSERT OR IGNORE INTO waiting VALUES (?, ?)", (key, destination_id))


def remove(connection: sqlite3.Connection, key: str, destination_id: str) -> None:
    """A destination wants the answer no more."""
    connection.execute("DELETE FROM waiting WHERE key = ? AND destination_id = ?", (key, destination_id))


def free_beside(connection: sqlite3.Connection, job_id: str) -> None:
    """Let destinations go on that wait for questions of other jobs than this."""
    connection.execute(
        "UPDATE parked SET is_free = 1 WHERE is_free = 0 AND destination_id IN"
        " (SELECT destination_id FROM waiting JOIN batch_questions USING (key) WHERE job_id != ?)",
        (job_id,),
    )


def park(connection: sqlite3.Connection, destination: Destination) -> bool:
    """A destination is not at work any more; returns whether it may go on already."""
    is_free = not exists(connection, "waiting WHERE destination_id = ?", destination.id)
    row = destination.id, pack(destination), is_free
    connection.execute("INSERT OR REPLACE INTO parked VALUES (?, ?, ?)", row)
    return is_free


def end(connection: sqlite3.Connection, key: str) -> None:
    """A question has its end; parked destinations that wait for nothing more may go on."""
    waited = connection.execute("SELECT destination_id FROM waiting WHERE key = ?", (key,)).fetchall()
    connection.execute("DELETE FROM waiting WHERE key = ?", (key,))
    connection.executemany(
        "UPDATE parked SET is_free = 1 WHERE destination_id = ?1"
        " AND NOT EXISTS (SELECT 1 FROM waiting WHERE destination_id = ?1)",
        waited,
    )


def take(connection: sqlite3.Connection, count: int) -> Sequence[Destination]:
    """At most `count` of the destinations that may go on; they are parked no more."""
    query = "SELECT destination_id, destination FROM parked WHERE is_free = 1 LIMIT ?"
    rows = connection.execute(query, (count,)).fetchall()
    connection.executemany("DELETE FROM parked WHERE destination_id = ?", [row[:1] for row in rows])
    return [unpack(row[1], Destination) for row in rows]


def has_free(connection: sqlite3.Connection) -> bool:
    return exists(connection, "parked WHERE is_free = 1")


def exists(connection: sqlite3.Connection, where: str, *values: str | float) -> bool:
    return bool(connection.execute(f"SELECT EXISTS (SELECT 1 FROM {where})", values).fetchone()[0])  # noqa: S608
