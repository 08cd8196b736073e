"""The cancellations of the jobs that have chunks in this worker, and the pauses that begin here."""

import logging
from collections.abc import Iterable

from tasks.errors import JobPausedError
from tasks.queue.ledger import Ledger
from workers.llm.cancellation import Cancellation
from workers.process.retry import StoppableRetry

log = logging.getLogger("themes.chunks")


class Cancellations:
    """One cancellation a job, for as long as any of its chunks is held."""

    def __init__(self, ledger: Ledger, retry: StoppableRetry) -> None:
        self._ledger = ledger
        self._retry = retry
        self._cancellations: dict[str, Cancellation] = {}
        #: Jobs whose pause is decided here and not yet written in Redis.
        self._pausing: set[str] = set()

    def __repr__(self) -> str:
        return f"<Cancellations {[*self._cancellations.values()]}>"

    @property
    def jobs(self) -> list[str]:
        return list(self._cancellations)

    def of(self, job_id: str) -> Cancellation:
        """The job's cancellation; a new one where the old one has stopped: the ledger hands out running jobs only."""
        cancellation = self._cancellations.get(job_id)
        if cancellation is None or (cancellation.reason and not self._retry.is_stopped):
            cancellation = self._cancellations[job_id] = Cancellation(job_id)
        return cancellation

    def forget(self, job_id: str) -> None:
        self._cancellations.pop(job_id, None)

    def stop_all(self, reason: str, *, at_once: bool = False) -> None:
        for cancellation in self._cancellations.values():
            cancellation.stop(reason, at_once=at_once)

    async def look(self, job_ids: Iterable[str] | None = None) -> None:
        """Stop those of our jobs that were cancelled or paused; all of them are looked at unless some are named."""
        ours = [
            job_id for job_id in (self._cancellations if job_ids is None else job_ids) if job_id in self._cancellations
        ]
        if not ours:
            return
        for job_id, reason in (await self._ledger.stopped(ours)).items():
            if (cancellation := self._cancellations.get(job_id)) and not cancellation.reason:
                log.info("action=halt job_id=%s %s", job_id, reason)
                cancellation.stop(reason)

    def is_pausing(self, job_id: str) -> bool:
        """Whether the job has met what pauses it, and Redis may not know yet: no more of it is begun."""
        cancellation = self._cancellations.get(job_id)
        return job_id in self._pausing or (
            cancellation is not None and cancellation.paused is not None and not cancellation.is_told
        )

    async def pause(self, error: JobPausedError) -> bool:
        """Pause a job for every worker; False when what paused it has been mended meanwhile, or it has ended."""
        cancellation = self._cancellations.get(error.job_id)
        self._pausing.add(error.job_id)
        try:
            is_paused = await self._retry.call(lambda: self._ledger.pause(error))
        finally:
            self._pausing.discard(error.job_id)
        if cancellation is not None:
            cancellation.is_told = True
        return is_paused
