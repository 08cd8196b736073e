"""Which destinations of a job a retry asks again, with Redis or without."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.messages import Destination
from tasks.texts import clean_line
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.queries.spelling import of_failures

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
        only = (self.error_class,) if self.error_class else ()
        classes = await of_failures(store, job_id, "error_class", only, "--only ")
        stages = await of_failures(store, job_id, "stage", self.stages, "--stage ")
        for said in (*classes.unknown, *stages.unknown):
            print(f"themes: {clean_line(said)}", file=sys.stderr)
        error_class = next(iter(classes.values), None)
        chosen = [row.destination async for row in store.failed(job_id, error_class, stages.values)]
        if self.partial:
            chosen += [row.destination async for row in store.partial(job_id, error_class, stages.values)]
        return chosen

    def nothing(self, known: "KnownJob") -> str:
        said = f"{known.done + known.failed:,} of {known.listed:,} finished, {known.failed:,} failed"
        if self.error_class:
            said += f" with {self.error_class}"
        if self.stages:
            said += f" at {', '.join(self.stages)}"
        if known.partial and not self.partial:
            said += f"; partial: {known.partial:,}: `themes retry {known.job_id} --partial` asks for what they lack"
        return said
