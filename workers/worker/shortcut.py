"""Destinations of a chunk that the cache has whole: looked up together, handed in together, without a lane.

A lane is for what waits for a server. Here nothing does: sixteen destinations are one read and one script.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from tasks import tracing
from tasks.logs import about
from tasks.messages import Destination, JobOptions
from tasks.queue.ledger import Taken
from workers.llm.cancellation import Cancellation
from workers.observe.profiler import PerformanceProfiler
from workers.observe.records import Records
from workers.pipeline.processor import Processed
from workers.worker.destination import DestinationRunner, Outcome

#: Destinations of one look: their results are held in memory together, some 11 KB each.
PAGE: Final = 16

#: Looks a job's destinations up; None where one must be worked on.
FindKnown = Callable[[str, Sequence[Destination], JobOptions], Awaitable[list[Processed | None]]]


class Shortcut:
    def __init__(self, find: FindKnown, destinations: DestinationRunner, profiler: PerformanceProfiler) -> None:
        self._find = find
        self._destinations = destinations
        self._profiler = profiler

    def __repr__(self) -> str:
        return f"<Shortcut {self._destinations!r}>"

    async def run(  # noqa: PLR0917  # what a chunk has
        self,
        taken: Taken,
        todo: Sequence[Destination],
        options: JobOptions,
        cancellation: Cancellation,
        records: Records | None,
        waited: Mapping[str, float | None],
    ) -> list[Destination]:
        """Hand in the results of what the cache has whole; returns the others, in their order."""
        others: list[Destination] = []
        for start in range(0, len(todo), PAGE):
            page = todo[start : start + PAGE]
            if cancellation.reason:
                return [*others, *todo[start:]]
            found = await self._find(taken.chunk.job_id, page, options)
            known: list[Outcome] = []
            for destination, processed in zip(page, found, strict=True):
                if processed is None:
                    others.append(destination)
                    continue
                with (
                    about(job_id=taken.chunk.job_id, destination_id=destination.id),
                    self._profiler.destination(records, destination.id, destination.label, waited=waited),
                    tracing.span(
                        "destination", parent=tracing.traceparent() or options.trace,
                        job_id=taken.chunk.job_id, destination_id=destination.id,
                    ),
                ):  # fmt: skip
                    known.append(self._destinations.outcome(taken, destination, processed))
            if known:
                await self._destinations.hand_in(taken.chunk, known)
        return others
