"""Which destinations of a job a retry asks again, with Redis or without."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.messages import Destination
from workers.results.database.manager import AsyncDatabaseManager

if TYPE_CHECKING:
    # Celery comes with it, which `themes run` does without.
    from tasks.queue.retry import KnownJob


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which destinations of a job are asked again: those that failed, and partial ones where `partial` says so."""

    error_class: str | None = None
    stages: tuple[str, ...] = ()
    partial: bool = False

    async def of(self, store: AsyncDatabaseManager, job_id: str) -> list[Destination]:
        """These destinations."""
        chosen = [row.destination async for row in store.failed(job_id, self.error_class, self.stages)]
        if self.partial:
            chosen += [row.destination async for row in store.partial(job_id, self.error_class, self.stages)]
        return chosen

    def nothing(self, known: "KnownJob") -> str:
        """Why there is nothing to ask again."""
        said = f"{known.done} of {known.listed} done, {known.failed} failed"
        if self.error_class:
            said += f" with {self.error_class}"
        if self.stages:
            said += f" at {', '.join(self.stages)}"
        if known.partial and not self.partial:
            said += f"; {known.partial} are partial: `themes retry {known.job_id} --partial` asks for what they lack"
        return said
