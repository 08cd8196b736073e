"""Replays the call journals of dead worker processes of this machine.

The supervisor looks for them when its process has ended, every worker when it starts, the consumer at intervals, and
`themes run` when it starts; the file's lock keeps them apart. What a file holds is delivered as `Spent`, then the file
is removed. A process that dies in between leaves it for the next, which delivers the same entries again: the database
takes a run (attempt, worker, time) once, and not at all where its result has arrived.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

from redis import Redis, RedisError

from config.errors import ThemesError
from config.settings import Settings
from tasks import keys
from tasks.connection import connect
from tasks.messages import Spent, Usage
from tasks.storable import entry_fields
from workers.observe.call_file import BAD_SUFFIX, FOLDER, NEW_SUFFIX, SUFFIX, DamagedJournalError, Orphan, Remains, read

log = logging.getLogger("themes.orphans")

#: A file of ours is never larger: the most slots, and the head.
MAX_BYTES: Final = 4 * 1024 * 1024
#: Unreadable files that are kept for a look.
BAD_FILES: Final = 10
#: Seconds after which a file that was never finished is what a process has left that died while it made it.
UNFINISHED_SECONDS: Final = 60.0


class Delivery(Protocol):
    """Where costs of dead processes are delivered to."""

    def knows(self, job_id: str) -> bool:
        """Whether this job is one of this stack. Costs of other jobs may belong to another stack."""

    def deliver(self, spent: list[Spent]) -> None:
        """Hand over all of the costs; afterwards a kill loses none of them."""


class StreamDelivery:
    """Delivers to the results stream.

    Args:
        settings: whether entries are compressed.
        redis: has the results stream; not closed here.
        knows: whether a job that has left Redis is known all the same.
    """

    def __init__(self, settings: Settings, redis: Redis, *, knows: Callable[[str], bool] = lambda _: False) -> None:
        self._compress = settings.performance_optimization.enable_result_compression
        self._redis = redis
        self._knows = knows

    def knows(self, job_id: str) -> bool:
        """Whether the job is in Redis, or known all the same."""
        return bool(self._redis.exists(keys.job(job_id))) or self._knows(job_id)

    def deliver(self, spent: list[Spent]) -> None:
        """Put all costs on the stream in one transaction."""
        with self._redis.pipeline(transaction=True) as pipeline:
            for one in spent:
                pipeline.xadd(keys.RESULTS, entry_fields(one, compress=self._compress))
            pipeline.execute()


class JournalReplayer:
    """Delivers what dead processes have spent, out of the files in a state directory."""

    def __init__(self, state_dir: Path, delivery: Delivery) -> None:
        self._folder = state_dir / FOLDER
        self._delivery = delivery
        #: Files that were logged already.
        self._said: set[str] = set()

    def book(self) -> int:
        """Book what dead processes have left; returns how many calls that were.

        Raises:
            RedisError: Redis does not answer; the files stay.
            ThemesError: the database cannot be used; the files stay.
        """
        calls = 0
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            try:
                with _owned(path) as data:
                    if data is not None:
                        calls += self._book(path, data)
            except DamagedJournalError as exc:
                self._set_aside(path, str(exc))
            except OSError as exc:
                self._say(path, f"cannot be read ({exc.strerror or exc}): whoever may read it books it")
        self._tidy()
        return calls

    def _book(self, path: Path, data: bytes) -> int:
        remains = read(data)
        orphans = [one for one in remains.orphans if one.usage != Usage()]
        unknown = {one.job_id for one in orphans if not self._delivery.knows(one.job_id)}
        if unknown:
            if time.time() - path.stat().st_mtime < keys.KEEP_SECONDS:
                self._say(
                    path, f"belongs to jobs that nobody here knows ({', '.join(sorted(unknown))}): it is left alone"
                )
                return 0
            self._say(
                path, f"is a week old, and of jobs that nobody knows ({', '.join(sorted(unknown))}): it is removed"
            )
        known = [one for one in orphans if one.job_id not in unknown]
        if known:
            self._delivery.deliver([_spent(remains, one) for one in known])
        path.unlink()
        calls = sum(one.usage.llm_calls for one in known)
        if known:
            log.warning(
                "action=orphans_booked worker=%s pid=%d destinations=%d calls=%d uncertain=%d what a process had in "
                "hand when it died is in the books",
                remains.worker, remains.pid, len(known), calls, sum(one.uncertain for one in known),
            )  # fmt: skip
        return calls

    def _set_aside(self, path: Path, reason: str) -> None:
        log.error(
            "action=recording_bad %s is set aside as *%s, what it held is not booked: %s", path, BAD_SUFFIX, reason
        )
        with contextlib.suppress(FileNotFoundError):
            path.rename(path.with_suffix(BAD_SUFFIX))

    def _say(self, path: Path, what: str) -> None:
        """Log once a file."""
        if path.name not in self._said:
            self._said.add(path.name)
            log.warning("action=recording_left %s %s", path, what)

    def _tidy(self) -> None:
        """Keep few of the damaged files, and none that was never finished."""
        with contextlib.suppress(OSError):
            bad = sorted(self._folder.glob(f"*{BAD_SUFFIX}"), key=lambda path: path.stat().st_mtime)
            for path in bad[:-BAD_FILES]:
                path.unlink()
            for path in self._folder.glob(f"*{NEW_SUFFIX}"):
                if time.time() - path.stat().st_mtime > UNFINISHED_SECONDS:
                    path.unlink()


@contextlib.contextmanager
def _owned(path: Path) -> Iterator[bytes | None]:
    """Within the body, a dead process's file is ours alone; None where its owner lives, or another was faster.

    Raises:
        DamagedJournalError: it is larger than any of ours.
    """
    try:
        # For writing: some file systems lock nothing else.
        lock = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_it = os.fstat(lock).st_ino == path.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            is_it = False
        if is_it and os.fstat(lock).st_size > MAX_BYTES:
            raise DamagedJournalError(f"{os.fstat(lock).st_size} bytes")
        yield os.read(lock, MAX_BYTES) if is_it else None
    finally:
        os.close(lock)


def _spent(remains: Remains, orphan: Orphan) -> Spent:
    return Spent(
        job_id=orphan.job_id,
        destination_id=orphan.destination_id,
        attempt=orphan.attempt,
        usage=orphan.usage,
        worker=remains.worker,
        at=orphan.at,
        elapsed_ms=orphan.elapsed_ms,
        lost=True,
    )


def replay_journals(settings: Settings, redis: Redis) -> None:
    """Book what can be booked now; where Redis does not answer, others do it later."""
    try:
        JournalReplayer(settings.state_dir, StreamDelivery(settings, redis)).book()
    except RedisError as exc:
        log.warning("action=orphans_left what dead processes had in hand is booked later, Redis: %s", exc)


async def keep_replaying(settings: Settings, url: str, *, knows: Callable[[str], bool]) -> None:
    """Replay every `work.sweep_interval_seconds` until cancelled. `knows` runs in a thread."""
    redis = connect(url, socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    orphanage = JournalReplayer(settings.state_dir, StreamDelivery(settings, redis, knows=knows))
    try:
        while True:
            try:
                await asyncio.to_thread(orphanage.book)
            except (RedisError, ThemesError) as exc:
                log.info("action=orphans_left Redis or the database does not answer: %s", exc)
            await asyncio.sleep(settings.work.sweep_interval_seconds)
    finally:
        redis.close()
