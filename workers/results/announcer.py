"""Tells Redis what has become durable: the job's hash, its events, and what is left of it when it has ended.

All of a batch goes in one MULTI, so a batch is announced whole or not at all, and again when its consumer died before
it could acknowledge (events are at-least-once; `job.started` and `job.done` come once). A job whose hash is gone
(deleted, or Redis was emptied) is not brought back: nothing would ever expire it.
"""

import logging
import time
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from config.settings import Settings
from tasks import keys
from tasks.jobs.events import encode
from tasks.messages import Event
from workers.results.database import totals
from workers.results.database.rows import FINAL_STATES, Applied, JobRow
from workers.results.progress import RateWindow, counters, destination_event, hash_fields, job_event

log = logging.getLogger("themes.results")

#: KEYS: hash, events, then what the job's work leaves behind, active jobs. ARGV: revision, state, whether events are
#: wanted, `job.started`, most events, job id, then the hash's fields and values. Consumers may report out of order: an
#: older revision changes nothing. Only the database may end a job that a user has cancelled in the hash, and a job
#: that a worker has begun does not wait again because no result of it is durable yet. A job that had ended and is asked
#: again is active again.
_REPORT: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local known = tonumber(redis.call('HGET', KEYS[1], 'revision') or '0')
if known and known < 9007199254740992 and tonumber(ARGV[1]) < known then return 0 end
local cancelled = redis.call('HGET', KEYS[1], 'state') == 'cancelled'
local final = ARGV[2] == 'done' or ARGV[2] == 'cancelled'
local begun = ARGV[2] == 'queued' and redis.call('HGET', KEYS[1], 'state') == 'running'
for i = 7, #ARGV, 2 do
  local kept = cancelled and not final and (ARGV[i] == 'state' or ARGV[i] == 'finished_at')
  kept = kept or begun and (ARGV[i] == 'state' or ARGV[i] == 'started_at')
  if not kept then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
if not final and redis.call('HGET', KEYS[1], 'ended') == '1' then
  redis.call('HDEL', KEYS[1], 'ended')
  for i = 1, 8 do redis.call('PERSIST', KEYS[i]) end
  redis.call('SADD', KEYS[9], ARGV[6])
end
if ARGV[3] == '1' and ARGV[2] ~= 'queued' then
  if redis.call('HGET', KEYS[1], 'announced') ~= '1' or redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('HSET', KEYS[1], 'announced', '1')
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', 'e', ARGV[4])
  end
end
return 1
"""

#: KEYS: hash, events, chunks, labels, leases, owners, deliveries, budget, active jobs. ARGV: revision, job id, whether
#: events are wanted, last `job.progress`, `job.done`, most events, seconds to keep the job, seconds to keep its events.
#: While a worker has yet to take its last chunk off, what that needs stays, and expires with the job.
_END: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local known = tonumber(redis.call('HGET', KEYS[1], 'revision') or '0')
if known and known < 9007199254740992 and tonumber(ARGV[1]) < known then return 0 end
if redis.call('HGET', KEYS[1], 'ended') ~= '1' then
  redis.call('HSET', KEYS[1], 'ended', '1')
  if ARGV[3] == '1' then
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'e', ARGV[4])
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'e', ARGV[5])
  end
end
redis.call('SREM', KEYS[9], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[7])
redis.call('EXPIRE', KEYS[2], ARGV[8])
redis.call('EXPIRE', KEYS[8], ARGV[7])
for i = 3, 7 do
  if redis.call('EXISTS', KEYS[3]) == 0 then redis.call('DEL', KEYS[i])
  else redis.call('EXPIRE', KEYS[i], ARGV[7]) end
end
return 1
"""

#: KEYS: events. ARGV: most events, then events. Without the stream that `job.started` has made there is no such job.
_EVENTS: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for i = 2, #ARGV do redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'e', ARGV[i]) end
return #ARGV - 1
"""
#: Events in one command: Redis serves nobody else while it runs, so it is kept to a millisecond or so.
EVENTS_AT_ONCE: Final = 200


class Announcer:
    """Announces committed batches.

    Args:
        redis: not closed here.
        settings: whether events are wanted, how many are kept, how often progress is told.
    """

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self._redis = redis
        self._wants_events = settings.performance_optimization.enable_streaming_results
        self._interval_seconds = settings.performance_optimization.progressive_feedback_interval
        self._max_events = settings.streaming.max_events_per_job
        self._rates = RateWindow()
        self._told_at: dict[str, float] = {}
        #: Jobs that could not be announced and of which that was said.
        self._said: set[str] = set()

    def __repr__(self) -> str:
        return f"<Announcer events={self._wants_events} running={len(self._told_at)}>"

    async def announce(self, applied: Applied) -> None:
        """Tell everything about one committed batch, in one round trip."""
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
                self._told_at.pop(job.job_id, None)
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
            totals.tell(pipe, applied.totals)
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
        due = now - self._told_at.get(job.job_id, float("-inf")) >= self._interval_seconds
        if self._wants_events and due and job.state != "queued":
            self._told_at[job.job_id] = now
            self._event(pipe, job_event("job.progress", job, counters(job, rate)))

    def _outcomes(self, applied: Applied) -> dict[str, list[bytes]]:
        """The events of single destinations by job: many in one command, for a command costs more than an event."""
        events: dict[str, list[bytes]] = {}
        for outcome in applied.outcomes if self._wants_events else ():
            events.setdefault(outcome.result.job_id, []).append(_encoded(destination_event(outcome)))
        return events

    def _event(self, pipe: Any, event: Event) -> None:
        """Add to the stream that `job.started` has made; without one there is no such job any more."""
        pipe.xadd(
            keys.events(event.job_id),
            encode(event),
            maxlen=self._max_events,
            approximate=True,
            nomkstream=True,
        )

    def _end(self, pipe: Any, job: JobRow, rate: float) -> None:
        data = counters(job, rate)
        pipe.eval(
            _END,
            9,
            *_job_keys(job.job_id),
            keys.ACTIVE,
            job.revision,
            job.job_id,
            int(self._wants_events),
            _encoded(job_event("job.progress", job, data)),
            _encoded(job_event("job.done", job, {**data, "state": job.state})),
            self._max_events,
            keys.KEEP_SECONDS,
            keys.EVENTS_KEEP_SECONDS,
        )


def _job_keys(job_id: str) -> list[str]:
    """The hash and the events of a job, then what its work leaves behind, chunks first, and its budget."""
    names = (
        keys.job,
        keys.events,
        keys.chunks,
        keys.labels,
        keys.leases,
        keys.owners,
        keys.deliveries,
        keys.budget,
    )
    return [name(job_id) for name in names]


def _encoded(event: Event) -> bytes:
    """An event as the scripts add it: the one field of its stream's entries."""
    data: bytes = encode(event)["e"]
    return data
