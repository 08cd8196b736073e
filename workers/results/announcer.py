"""Writes into Redis what has become durable: the job's hash, its events, and the end of its work.

A batch is one MULTI, announced whole or not at all, and again when its consumer died before it could acknowledge:
events are at-least-once, `job.started` and `job.done` come once. A job whose hash is gone is not brought back, because
nothing would expire it.
"""

import logging
import time
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from config.settings import Settings
from tasks import keys
from tasks.jobs.events import encode
from tasks.lua import lua
from tasks.messages import Event
from workers.results import webhook
from workers.results.database import totals
from workers.results.database.rows import FINAL_STATES, Applied, JobRow
from workers.results.progress import RateWindow, counters, destination_event, hash_fields, job_event

log = logging.getLogger("themes.results")

_REPORT: Final = lua(__file__, "report")
_END: Final = lua(__file__, "end_job")
_EVENTS: Final = lua(__file__, "add_events")
#: Events in one command: Redis serves no other client while it runs, so it is kept to a millisecond or so.
EVENTS_AT_ONCE: Final = 200


class Announcer:
    """Announces committed batches.

    Args:
        redis: not closed here.
        settings: whether events are wanted, how many are kept, how often progress is told.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._has_webhook = bool(settings.webhook.url)
        self._wants_events = settings.performance_optimization.enable_streaming_results
        self._interval_seconds = settings.performance_optimization.progressive_feedback_interval
        self._max_events = settings.streaming.max_events_per_job
        self._rates = RateWindow()
        self._announced_at: dict[str, float] = {}
        #: Jobs that could not be announced and of which that was said.
        self._said: set[str] = set()

    async def announce(self, applied: Applied) -> None:
        """Announce one committed batch, in one round trip."""
        if not applied.jobs and not applied.totals:
            return
        async with self._redis.pipeline(transaction=True) as pipe:
            about = self._queue(pipe, applied)
            replies = await pipe.execute(raise_on_error=False)
        for job_id, reply in zip(about, replies, strict=True):
            if isinstance(reply, Exception):
                self._refused(job_id, reply)
        for job in applied.jobs.values():
            if job.state in FINAL_STATES:
                self._rates.forget(job.job_id)
                self._announced_at.pop(job.job_id, None)
                self._said.discard(job.job_id)

    def _queue(self, pipe: Any, applied: Applied) -> list[str]:
        """Queue the commands of a batch; returns of each the job that it is about, empty for the totals."""
        rates = {job_id: self._rates.rate(job, time.time()) for job_id, job in applied.jobs.items()}
        about: list[str] = []

        def queued_for(job_id: str) -> None:
            about.extend([job_id] * (len(pipe) - len(about)))

        for job_id, job in applied.jobs.items():
            self._report(pipe, job, rates[job_id])
            queued_for(job_id)
        for job_id, events in self._outcomes(applied).items():
            for at in range(0, len(events), EVENTS_AT_ONCE):
                some = events[at : at + EVENTS_AT_ONCE]
                pipe.eval(_EVENTS, 1, keys.events(job_id), self._max_events, *some)
            queued_for(job_id)
        for job_id, job in applied.jobs.items():
            if job.state in FINAL_STATES:
                self._end(pipe, job, rates[job_id])
            else:
                self._progress(pipe, job, rates[job_id])
            queued_for(job_id)
        if applied.totals:
            totals.write(pipe, applied.totals)
        queued_for("")
        return about

    def _refused(self, job_id: str, error: Exception) -> None:
        """Pass over a job whose keys are not ours any more, and say so once; the others are announced."""
        if not isinstance(error, ResponseError) or isinstance(error, OutOfMemoryError):
            raise error
        if job_id not in self._said:
            self._said.add(job_id)
            log.warning(
                "action=job_unreadable job_id=%s Redis holds something else under a key of %s, so its progress is not "
                "announced; its rows are in the database: %s",
                job_id, f"job {job_id}" if job_id else "the totals", error,
            )  # fmt: skip

    def _report(self, pipe: Any, job: JobRow, rate: float) -> None:
        fields = hash_fields(job, rate, time.time())
        started = job_event("job.started", job, {"name": job.name, "total": job.total})
        pipe.eval(
            _REPORT,
            9,
            *_job_keys(job.job_id),
            keys.ACTIVE,
            job.revision,
            job.state,
            int(self._wants_events),
            _encoded(started),
            self._max_events,
            job.job_id,
            *(part for field in fields.items() for part in field),
        )

    def _progress(self, pipe: Any, job: JobRow, rate: float) -> None:
        now = time.monotonic()
        due = now - self._announced_at.get(job.job_id, float("-inf")) >= self._interval_seconds
        if self._wants_events and due and job.state != "queued":
            self._announced_at[job.job_id] = now
            event = job_event("job.progress", job, counters(job, rate))
            # Without the stream that `job.started` has made there is no such job any more.
            pipe.xadd(
                keys.events(job.job_id), encode(event), maxlen=self._max_events, approximate=True, nomkstream=True
            )

    def _outcomes(self, applied: Applied) -> dict[str, list[bytes]]:
        """The events of single destinations by job: many in one command, for a command costs more than an event."""
        events: dict[str, list[bytes]] = {}
        for outcome in applied.outcomes if self._wants_events else ():
            events.setdefault(outcome.result.job_id, []).append(_encoded(destination_event(outcome)))
        return events

    def _end(self, pipe: Any, job: JobRow, rate: float) -> None:
        data = counters(job, rate)
        notice = webhook.ended(job) if self._has_webhook else None
        pipe.eval(
            _END,
            12,
            *_job_keys(job.job_id),
            keys.ACTIVE,
            keys.batches(job.job_id),
            keys.WEBHOOKS,
            keys.WEBHOOKS_DUE,
            job.revision,
            job.job_id,
            int(self._wants_events),
            _encoded(job_event("job.progress", job, data)),
            _encoded(job_event("job.done", job, {**data, "state": job.state})),
            self._max_events,
            keys.KEEP_SECONDS,
            keys.EVENTS_KEEP_SECONDS,
            notice.id if notice else "",
            notice.encoded() if notice else "",
        )


def _job_keys(job_id: str) -> list[str]:
    """The hash and the events of a job, then what its work leaves behind, chunks first, and its budget."""
    work = keys.chunks, keys.labels, keys.leases, keys.owners, keys.deliveries, keys.budget
    return [name(job_id) for name in (keys.job, keys.events, *work)]


def _encoded(event: Event) -> bytes:
    """An event as the scripts add it: the one field of its stream's entries."""
    data: bytes = encode(event)["e"]
    return data
