"""Stopping a job inside one worker process, within the time of one call.

A job that was cancelled or paused, or whose worker is stopping, asks nothing more. Prompts that wait (in a line, for a
limit, for the answer to an equal prompt, for the next try) are withdrawn at once; a call under way is paid for already,
so its answer is awaited, and cached.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tasks.errors import JobPausedError, JobStoppedError


class Cancellation:
    """Whether one job is to stop, and why."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        #: Why the job goes no further; empty while it does.
        self.reason = ""
        #: What pauses the job, where something does.
        self.paused: JobPausedError | None = None
        #: Whether the other workers know of the pause.
        self.is_told = False
        self._stages: dict[asyncio.Task[object], CancellationToken] = {}

    def __repr__(self) -> str:
        return f"<Cancellation {self.job_id} {self.reason or 'going on'} stages={len(self._stages)}>"

    def stop(self, reason: str, *, at_once: bool = False) -> None:
        """Cancel the stages that wait, and start none; `at_once`: also those whose calls are under way."""
        self.reason = self.reason or reason
        for task, token in list(self._stages.items()):
            if at_once or not token.under_way:
                task.cancel()

    def pause(self, error: JobPausedError) -> None:
        """Stop until the job is resumed; its stages end with this error."""
        self.paused = self.paused or error
        self.stop(str(error))

    def error(self) -> JobStoppedError:
        return self.paused or JobStoppedError(self.reason, job_id=self.job_id)

    @contextmanager
    def watching(self, token: "CancellationToken") -> Iterator[None]:
        """Within the body, `stop` cancels the stage that runs in the current task."""
        task = asyncio.current_task()
        assert task  # noqa: S101  # a coroutine runs in a task
        if self.reason:
            raise self.error()
        self._stages[task] = token
        try:
            yield
        finally:
            del self._stages[task]


#: Stops nothing.
NEVER: Final = Cancellation("")


class CancellationToken:
    """One stage's permission to ask. Without a `cancellation` nothing stops the stage."""

    __slots__ = ("cancellation", "under_way")

    def __init__(self, cancellation: Cancellation | None = None) -> None:
        self.cancellation = cancellation or NEVER
        #: Calls that were sent and have not come back.
        self.under_way = 0

    def check(self) -> None:
        """Raise `JobStoppedError` where the job is to stop."""
        if self.cancellation.reason:
            raise self.cancellation.error()

    def __enter__(self) -> None:
        """Within the body a call is under way."""
        self.under_way += 1

    def __exit__(self, *_: object) -> None:
        self.under_way -= 1
