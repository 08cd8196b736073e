"""The stop signs of the jobs that have chunks in this worker, and the pauses that begin here."""

import logging
from collections.abc import Iterable

from tasks.errors import JobPausedError
from tasks.queue.ledger import Ledger
from workers.llm.cancellation import Halt
from workers.process.retry import Patience

log = logging.getLogger("themes.chunks")


class Halts:
    """One stop sign a job, for as long as any of its chunks is held."""

    def __init__(self, ledger: Ledger, patience: Patience) -> None:
        self._ledger = ledger
        self._patience = patience
        self._halts: dict[str, Halt] = {}
        #: Jobs whose pause is decided here and not yet written in Redis.
        self._pausing: set[str] = set()

    def __repr__(self) -> str:
        return f"<Halts {[*self._halts.values()]}>"

    @property
    def jobs(self) -> list[str]:
        """Jobs that have a stop sign."""
        return list(self._halts)

    def of(self, job_id: str) -> Halt:
        """The job's stop sign. The ledger hands out chunks only of a job that goes on: an old sign is done."""
        halt = self._halts.get(job_id)
        if halt is None or (halt.reason and not self._patience.is_over):
            halt = self._halts[job_id] = Halt(job_id)
        return halt

    def forget(self, job_id: str) -> None:
        """No chunk of the job is held any more."""
        self._halts.pop(job_id, None)

    def stop_all(self, reason: str, *, at_once: bool = False) -> None:
        """Stop every job here."""
        for halt in self._halts.values():
            halt.stop(reason, at_once=at_once)

    async def look(self, job_ids: Iterable[str] | None = None) -> None:
        """Stop those of our jobs that were cancelled or paused; all of them are looked at unless some are named."""
        ours = [job_id for job_id in (self._halts if job_ids is None else job_ids) if job_id in self._halts]
        if not ours:
            return
        for job_id, reason in (await self._ledger.stopped(ours)).items():
            if (halt := self._halts.get(job_id)) and not halt.reason:
                log.info("action=halt job_id=%s %s", job_id, reason)
                halt.stop(reason)

    def is_pausing(self, job_id: str) -> bool:
        """Whether the job has met what pauses it, and Redis may not know yet: no more of it is begun."""
        halt = self._halts.get(job_id)
        return job_id in self._pausing or (halt is not None and halt.paused is not None and not halt.is_told)

    async def pause(self, error: JobPausedError) -> bool:
        """Pause a job for every worker; False when what paused it has been mended meanwhile, or it has ended."""
        halt = self._halts.get(error.job_id)
        self._pausing.add(error.job_id)
        try:
            is_paused = await self._patience.wait_for(lambda: self._ledger.pause(error))
        finally:
            self._pausing.discard(error.job_id)
        if halt is not None:
            halt.is_told = True
        return is_paused
