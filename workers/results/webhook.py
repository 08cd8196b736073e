"""What a user's server is to be told: each job's end and pause, queued in Redis with what it tells of.

A consumer posts it (`workers.results.webhook_sender`).
"""

import time
from typing import Annotated, Any, Final, Self

import msgspec
from redis.asyncio import Redis

from tasks import keys
from tasks.jobs.registry import JobStatus
from tasks.lua import lua
from workers.results.database.rows import JobRow
from workers.results.progress import counters

#: Field of a job's entry with the time of the pause that was told last.
TOLD: Final = "pause_told_at"


class Notice(msgspec.Struct):
    """What is to be told, as it waits in Redis. `body` is JSON; times are in seconds since 1970."""

    id: str
    body: str
    created_at: float
    tries: Annotated[int, msgspec.Meta(ge=0)] = 0

    @classmethod
    def of(cls, id_: str, raw: bytes) -> Self:
        """The notice that waits as `id_`. Raises MsgspecError, UnicodeError: it is none of ours."""
        notice = msgspec.json.decode(raw, type=cls)
        if notice.id != id_:
            raise msgspec.ValidationError(f"it says that it is {notice.id!r}")
        return notice

    def encoded(self) -> bytes:
        return msgspec.json.encode(self)


def ended(job: JobRow) -> Notice:
    """The notice of a job's end."""
    data = {"job_id": job.job_id, "name": job.name, "state": job.state} | counters(job, 0.0)
    at = job.finished_at or time.time()
    return _notice("job.done", job.job_id, at, data)


def paused(job: JobStatus) -> Notice:
    data = {name: value for name, value in job.fields().items() if name not in {"batches", "wait"}}
    data["state"] = "paused"
    return _notice("job.paused", job.job_id, job.paused_at or time.time(), data)


def _notice(kind: str, job_id: str, at: float, data: dict[str, Any]) -> Notice:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    body = msgspec.json.encode({"type": kind, "timestamp": moment, "data": data}).decode()
    # Without a full stop, which separates it from the time in what is signed.
    return Notice(f"{job_id}-{kind.rpartition('.')[2]}-{at * 1000:.0f}", body, time.time())


class PauseNotices:
    """Queues the notice of each job's pause."""

    def __init__(self, redis: Redis) -> None:
        self._add = redis.register_script(lua(__file__, "add_webhook"))

    async def look(self, job: JobStatus) -> None:
        """Queue the notice of a job's pause, once."""
        if job.paused and job.paused_at:
            notice = paused(job)
            await self._add(
                keys=[keys.WEBHOOKS_DUE, keys.WEBHOOKS, keys.job(job.job_id)],
                args=[notice.id, notice.encoded(), TOLD, repr(job.paused_at)],
            )
