"""What Redis would keep, in a file of the state directory: paid completions, what jobs have spent, their batches.

One process at a time uses it, under a lock file: two would each use the whole rate limit, and could pay for one prompt
twice. SQLite in WAL mode with `synchronous=NORMAL`: a kill loses nothing that was written; a power cut may lose the
last seconds, which are then asked again. What a provider is asked to do for hours is on the disk before it is asked
(`FULL`). Statements run one after the other in a thread of this file's own.
"""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Final, Self, TypeVar

from tasks.errors import ConfigError, DatabaseError, ThemesError
from tasks.state_dir import make_private, writing_in
from workers.llm.budget import BookAwayError, Exchanged, decisions
from workers.llm.cache.completions import StoreAwayError
from workers.llm.funds import Standing

T = TypeVar("T")

#: The file's name in the state directory, and that of the lock.
NAME: Final = "run.db"
LOCK: Final = "run.lock"
#: Keys in one statement: below SQLite's bound of parameters, also that of old builds (999).
KEYS_AT_ONCE: Final = 500
#: Seconds that a statement waits for another program that reads or empties the file.
BUSY_SECONDS: Final = 10.0
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS completions (key TEXT PRIMARY KEY, stored BLOB NOT NULL, expires_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS completions_by_end ON completions (expires_at);
CREATE TABLE IF NOT EXISTS budgets (
    job_id TEXT PRIMARY KEY, limit_nano INTEGER NOT NULL, spent_nano INTEGER NOT NULL, reserved_nano INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS batches (
    tag TEXT PRIMARY KEY, job_id TEXT NOT NULL, is_open INTEGER NOT NULL, batch BLOB NOT NULL,
    reserved_nano INTEGER NOT NULL DEFAULT 0, spent_nano INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS batches_by_job ON batches (job_id, is_open);
CREATE TABLE IF NOT EXISTS batch_forms (digest TEXT PRIMARY KEY, form BLOB NOT NULL, expires_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS batch_questions (
    place INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, job_id TEXT NOT NULL, shelf TEXT NOT NULL, tag TEXT NOT NULL,
    question BLOB NOT NULL, worst_nano INTEGER NOT NULL, size_bytes INTEGER NOT NULL, payer TEXT NOT NULL,
    tries INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS batch_questions_by_tag ON batch_questions (tag, job_id, shelf);
CREATE TABLE IF NOT EXISTS batch_answers (key TEXT PRIMARY KEY, answer BLOB NOT NULL, expires_at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS batch_bills (
    tag TEXT NOT NULL, payer TEXT NOT NULL, bills TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (tag, payer)
);
"""
#: Tables whose rows are kept for a time.
_EXPIRING: Final = ("completions", "batch_forms", "batch_answers")


class StateFile:
    """The file, open for this process alone. Use as a context manager, on the loop that uses it.

    Entering raises `ConfigError`: the state directory cannot be written, or another process works there; or
    `DatabaseError`: this is no such file.
    """

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir.absolute()
        self.path = self._folder / NAME
        self._lock: IO[str] | None = None
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state file")

    def __repr__(self) -> str:
        return f"<StateFile {self.path} {'open' if self._connection else 'closed'}>"

    def __enter__(self) -> Self:
        make_private(self._folder)
        with writing_in(self._folder):
            self._lock = (self._folder / LOCK).open("a+")
        try:
            self._take_lock()
            self._connection = self._thread.submit(self._opened).result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let what is under way end, and let the next process in."""
        self._thread.shutdown(wait=True)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        assert self._lock  # noqa: S101  # opened on entering
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self._lock.seek(0)
            raise ConfigError(
                f"another `themes run` (process {self._lock.read().strip()}) works in {self._folder}: wait until it "
                "has ended, or choose another THEMES_STATE_DIR"
            ) from exc
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()

    def _opened(self) -> sqlite3.Connection:
        connection = _open(self.path)
        for table in _EXPIRING:
            connection.execute(f"DELETE FROM {table} WHERE expires_at <= ?", (time.time(),))  # noqa: S608
        return connection

    # Completions: see `CompletionStore`.

    async def read(self, wanted: Sequence[str]) -> list[bytes | None]:
        """What is stored under some keys, None where there is nothing. Raises `StoreAwayError`."""
        return await self.look(
            lambda connection: _stored(connection, wanted),
            lambda exc: StoreAwayError(f"{self.path} cannot be read ({exc})"),
        )

    async def write(self, stored: Mapping[str, bytes], *, ttl_ms: int) -> None:
        """Store all of these. Raises `StoreAwayError`."""
        until = time.time() + ttl_ms / 1000
        rows = [(key, packed, until) for key, packed in stored.items()]

        def store(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO completions VALUES (?, ?, ?)", rows)

        await self.change(store, lambda exc: StoreAwayError(f"{self.path} cannot be written ({exc})"))

    # Budgets.

    async def budget(self, job_id: str, *, now: int | None, first: int | None, spent_nano: int) -> "FileBook | None":
        """The book of a job's budget; None where it has none. All amounts are nano-dollars.

        Args:
            job_id: the job's.
            now: its limit from now on; None leaves the one that it has.
            first: the limit that it began with, where the file does not know it.
            spent_nano: what the job has spent at least, as the results database knows.
        """

        def settle(connection: sqlite3.Connection) -> tuple[int, int, int] | None:
            row = connection.execute(
                "SELECT limit_nano, spent_nano, reserved_nano FROM budgets WHERE job_id = ?", (job_id,)
            ).fetchone()
            limit = now if now is not None else row[0] if row else first
            if limit is None:
                return None
            # What a process had under way when it died may have been charged; what is in batches is known.
            in_batches, _ = batch_sums(connection, job_id)
            spent = max(spent_nano - in_batches, row[1] + row[2] if row else 0)
            connection.execute("INSERT OR REPLACE INTO budgets VALUES (?, ?, ?, 0)", (job_id, limit, spent))
            return limit, spent, in_batches

        found = await self.change(
            settle,
            lambda exc: DatabaseError(f"{self.path}: the job's budget cannot be kept ({exc}); make room on its disk"),
        )
        if found is None:
            return None
        limit_nano, calls_nano, batches_nano = found
        return FileBook(self, job_id, limit_nano=limit_nano, calls_nano=calls_nano, batches_nano=batches_nano)

    async def look(self, work: Callable[[sqlite3.Connection], T], error: Callable[[sqlite3.Error], ThemesError]) -> T:
        """Read something; also work that holds its own transactions."""
        assert self._connection  # noqa: S101  # used between entering and closing
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._connection)
        except sqlite3.Error as exc:
            raise error(exc) from exc

    async def has_batches(self, job_id: str) -> bool:
        """Whether a job has batches that have no end."""
        query = "SELECT EXISTS (SELECT 1 FROM batches WHERE job_id = ? AND is_open = 1)"
        found = await self.look(
            lambda connection: connection.execute(query, (job_id,)).fetchone(),
            lambda exc: DatabaseError(f"{self.path}: {exc}"),
        )
        return bool(found[0])

    async def change(
        self,
        work: Callable[[sqlite3.Connection], T],
        error: Callable[[sqlite3.Error], ThemesError],
        *,
        durable: bool = False,
    ) -> T:
        """Do something in one transaction, which outlasts a power cut where it is `durable`."""

        def whole(connection: sqlite3.Connection) -> T:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                return work(connection)

        return await self.look(whole, error)


class FileBook:
    """A job's budget in the file: see `workers.llm.budget.BudgetBook`.

    What batches have reserved and cost stands with them, so that a kill does not take it for calls that were lost.
    """

    def __init__(self, file: StateFile, job_id: str, *, limit_nano: int, calls_nano: int, batches_nano: int) -> None:
        self._file = file
        self._job_id = job_id
        self.limit_nano = limit_nano
        #: Spent on calls before this process, what earlier ones had under way when they died included.
        self._before_nano = calls_nano
        #: Spent until now.
        self.calls_nano, self.batches_nano = calls_nano, batches_nano

    @property
    def spent_nano(self) -> int:
        return self.calls_nano + self.batches_nano

    def __repr__(self) -> str:
        return f"<FileBook {self._job_id} limit={self.limit_nano} spent={self.spent_nano}>"

    async def exchange(self, spent: int, reserved: int, amounts: Sequence[int]) -> Exchanged:
        """Report what this process has spent and reserved, and ask for more; what is granted is written down first."""
        calls = self._before_nano + spent

        def decide(connection: sqlite3.Connection) -> tuple[int, list[int]]:
            in_batches, lines = batch_sums(connection, self._job_id)
            decided = decisions(
                self.limit_nano, certain=calls + in_batches, under_way=reserved + lines, amounts=amounts
            )
            granted = sum(amount for amount, decision in zip(amounts, decided, strict=True) if decision == 1)
            connection.execute(
                "UPDATE budgets SET spent_nano = ?, reserved_nano = ? WHERE job_id = ?",
                (calls, reserved + granted, self._job_id),
            )
            return in_batches, decided

        self.calls_nano = calls
        self.batches_nano, decided = await self._file.change(
            decide, lambda exc: BookAwayError(f"{self._file.path} cannot be written ({exc})")
        )
        return Standing(int(time.time() * 1000), self.limit_nano, self.spent_nano), decided


def batch_sums(connection: sqlite3.Connection, job_id: str) -> tuple[int, int]:
    """What a job's batches have cost until now, and what their lines without an end can cost, in nano-dollars."""
    sums = "COALESCE(SUM(spent_nano), 0), COALESCE(SUM(reserved_nano), 0)"
    row = connection.execute(f"SELECT {sums} FROM batches WHERE job_id = ?", (job_id,)).fetchone()  # noqa: S608
    return row[0], row[1]


def _open(path: Path) -> sqlite3.Connection:
    try:
        # Autocommit: every BEGIN is ours.
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        with contextlib.ExitStack() as failed:
            failed.callback(connection.close)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_TABLES)
            failed.pop_all()
    except sqlite3.Error as exc:
        raise DatabaseError(
            f"{path}: {exc}; move this file away (what it has is asked again), or make its folder writable"
        ) from exc
    return connection


def _stored(connection: sqlite3.Connection, wanted: Sequence[str]) -> list[bytes | None]:
    found: dict[str, bytes] = {}
    for start in range(0, len(wanted), KEYS_AT_ONCE):
        some = wanted[start : start + KEYS_AT_ONCE]
        marks = ",".join("?" * len(some))
        query = f"SELECT key, stored FROM completions WHERE expires_at > ? AND key IN ({marks})"  # noqa: S608
        found |= dict(connection.execute(query, (time.time(), *some)).fetchall())
    return [found.get(key) for key in wanted]


def look_up(state_dir: Path, wanted: Sequence[str]) -> list[bytes | None]:
    """As `StateFile.read`, without being the process that works in the state directory."""
    with _looking(state_dir) as connection:
        return [None] * len(wanted) if connection is None else _stored(connection, wanted)


def statistics(state_dir: Path) -> dict[str, Any]:
    """How many completions the file of a state directory has, and their bytes as stored."""
    with _looking(state_dir) as connection:
        if connection is None:
            return {"entries": 0, "bytes": 0}
        row = connection.execute(
            "SELECT COUNT(*), COALESCE(SUM(LENGTH(stored)), 0) FROM completions WHERE expires_at > ?", (time.time(),)
        ).fetchone()
    return {"entries": row[0], "bytes": row[1]}


def clear(state_dir: Path) -> int:
    """Drop every completion in the file of a state directory; how many it were."""
    with _looking(state_dir) as connection:
        return 0 if connection is None else connection.execute("DELETE FROM completions").rowcount


@contextlib.contextmanager
def _looking(state_dir: Path) -> Any:
    path = state_dir.absolute() / NAME
    if not path.exists():
        yield None
        return
    with contextlib.closing(_open(path)) as connection:
        try:
            yield connection
        except sqlite3.Error as exc:
            raise DatabaseError(f"{path}: {exc}") from exc
