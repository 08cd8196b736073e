"""A job's stop sign inside one worker process.

A job that was cancelled or paused, or whose worker is stopping, asks nothing more, within the time of one call: prompts
that wait (in a line, for a limit, for somebody else's answer, for the next try) are withdrawn at once; a call under way
is paid for already, so its answer is awaited, and cached.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.errors import JobPausedError, JobStoppedError


class Halt:
    """The stop sign of one job; until `stop` everything goes on."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        #: Why the job goes no further; empty while it does.
        self.reason = ""
        #: What pauses the job, where something does.
        self.paused: JobPausedError | None = None
        #: Whether the other workers know of the pause.
        self.is_told = False
        self._stages: dict[asyncio.Task[object], Ticket] = {}

    def __repr__(self) -> str:
        return f"<Halt {self.job_id} {self.reason or 'going on'} stages={len(self._stages)}>"

    def stop(self, reason: str, *, at_once: bool = False) -> None:
        """Withdraw what waits, and let nothing more be asked; `at_once`: do not await calls under way either."""
        self.reason = self.reason or reason
        for task, ticket in list(self._stages.items()):
            if at_once or not ticket.under_way:
                task.cancel()

    def pause(self, error: JobPausedError) -> None:
        """Stop because the job cannot go on until it is resumed; its stages end with this error."""
        self.paused = self.paused or error
        self.stop(str(error))

    def error(self) -> JobStoppedError:
        """What stages end with that cannot go on."""
        return self.paused or JobStoppedError(self.reason, job_id=self.job_id)

    @contextmanager
    def heeded(self, ticket: "Ticket") -> Iterator[None]:
        """Within the body, the stage that runs in the current task is cancelled when it is to go no further."""
        task = asyncio.current_task()
        assert task  # noqa: S101  # a coroutine runs in a task
        if self.reason:
            raise self.error()
        self._stages[task] = ticket
        try:
            yield
        finally:
            del self._stages[task]


class Ticket:
    """One stage's leave to ask. Without a `halt` nothing ever stops it."""

    __slots__ = ("halt", "under_way")

    def __init__(self, halt: Halt | None = None) -> None:
        self.halt = halt
        #: Calls that were sent and have not come back.
        self.under_way = 0

    def check(self) -> None:
        """See that nobody has stopped the job.

        Raises:
            JobStoppedError: somebody has.
        """
        if self.halt is not None and self.halt.reason:
            raise self.halt.error()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Within the body, a call is under way."""
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1
