"""How a worker has a destination processed: as its job's options say, its stages told to who watches."""

from collections.abc import Sequence

from tasks.errors import ConfigError
from tasks.messages import Destination, Event, JobOptions, StageRecord
from workers.llm.budget import Budget
from workers.llm.cancellation import Cancellation
from workers.pipeline.processor import Processed, StageListener
from workers.results.publisher import EventPublisher
from workers.worker.destination import Process, terms_of
from workers.worker.parts import Parts
from workers.worker.shortcut import FindKnown


def process_of(parts: Parts, publisher: EventPublisher, budget: Budget) -> Process:
    async def process(
        destination: Destination, cancellation: Cancellation, options: JobOptions, attempt: int
    ) -> Processed:
        job_id = cancellation.job_id

        return await parts.processor.process(
            destination,
            use_cache=options.use_cache,
            columns=options.columns,
            fields=options.fields,
            attempt=attempt,
            on_stage=_telling(publisher, job_id),
            may_be_known=False,
            budget=budget.of(job_id) if options.has_budget else None,
            terms=terms_of(options, job_id, destination),
            cancellation=cancellation,
        )

    return process


def known_of(parts: Parts, publisher: EventPublisher) -> FindKnown:
    async def known(job_id: str, some: Sequence[Destination], options: JobOptions) -> list[Processed | None]:
        on_stage = _telling(publisher, job_id)
        try:
            return await parts.processor.known(some, columns=options.columns, fields=options.fields, on_stage=on_stage)
        except ConfigError:
            # Of a field that no prompt file here makes: each destination fails by itself, and names it.
            return [None] * len(some)

    return known


def _telling(publisher: EventPublisher, job_id: str) -> StageListener:
    def on_stage(destination: Destination, record: StageRecord, count: int, found: list[str]) -> None:
        data = {
            "stage": record.stage,
            "status": record.status,
            "source": record.source,
            "answers": count,
            "found": found,
            "elapsed_ms": record.elapsed_ms,
            "name": destination.label,
        }
        publisher.publish(Event("stage.done", job_id, destination.id, data=data))

    return on_stage
