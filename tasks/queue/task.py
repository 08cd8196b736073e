"""The Celery task. Its body asks the process's runtime, which a bootstep of `workers.app` attaches to the app."""

from typing import Any, Protocol

from celery import Celery

from tasks import tracing
from tasks.queue.app import app
from tasks.queue.wire import PROCESS_CHUNK

_ATTRIBUTE = "themes_runtime"


class ChunkProcessor(Protocol):
    def process_chunk(self, job_id: str, chunk_id: str) -> str:
        """Work on a chunk until it is done, given back, or found to be another worker's; returns which."""


def attach(celery_app: Celery, runtime: ChunkProcessor | None) -> None:
    """Give the app the runtime that its tasks will use, or take it away."""
    setattr(celery_app, _ATTRIBUTE, runtime)


@app.task(name=PROCESS_CHUNK, bind=True, ignore_result=True)
def process_chunk(self: Any, job_id: str, chunk_id: str) -> str:
    runtime: ChunkProcessor | None = getattr(self.app, _ATTRIBUTE, None)
    if runtime is None:
        raise RuntimeError(
            "this worker has no runtime: start it with `themes worker` or `celery -A workers.app worker`"
        )
    parent = str(self.request.get(tracing.TRACEPARENT) or "")
    with tracing.span("process_chunk", "consumer", parent=parent, job_id=job_id, chunk_id=chunk_id) as span:
        end = runtime.process_chunk(job_id, chunk_id)
        tracing.note(span, end=end)
        return end
