"""A report's sources: the database for what must be exact, Redis for what goes on, and what to do when one is gone."""

import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import Any, Final

from redis import Redis, RedisError

from config.settings import Settings
from tasks import worker_reports as fleet
from tasks.connection import check_server, connect, locate
from tasks.errors import DatabaseError, JobNotFoundError, ThemesError
from tasks.jobs import registry as jobs
from tasks.jobs.registry import JobStatus
from tasks.messages import Usage
from workers.diagnosis.verdict import Pulse, read_pulse
from workers.observe.measurement_store import read_measurements
from workers.observe.measurements import JobMeasurements, ProcessMeasurements
from workers.report.report import JobReport, report_of
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.database.rows import JobRow
from workers.results.queries.job_stats import JobStats, empty_job_stats, read_job_stats
from workers.results.queries.status import status_of

log = logging.getLogger("themes.report")

#: Settings that say what a job could use, for a job whose processes have not said them.
SAID: Final = (
    "llm_connection_pool_size", "worker_pool_size", "database_batch_size", "theme_batch_size",
    "enable_persistent_cache", "enable_work_stealing", "enable_streaming_results", "enable_result_compression",
    "enable_intelligent_batching",
)  # fmt: skip
#: Seconds after a job's end in which what the consumers say of their statements still is about it.
RECENT_SECONDS: Final = 600.0
#: Longest wait for Redis when the database has all that is needed, in seconds.
REDIS_SECONDS: Final = 5.0


@dataclass(slots=True)
class Live:
    """What Redis says; nothing where it does not answer."""

    status: JobStatus | None = None
    parts: list[ProcessMeasurements] = field(default_factory=list)
    pulse: Pulse | None = None
    statements: dict[str, dict[str, float]] = field(default_factory=dict)
    trouble: str = ""


async def gather(settings: Settings, job_id: str) -> JobReport:
    """The report of a job. Raises JobNotFoundError; DatabaseError where neither database nor Redis can be read."""
    live = read_live(settings, job_id)
    notes = [live.trouble] if live.trouble else []
    now = time.time()
    found = await _stored(settings, job_id, live, now)
    if not isinstance(found, str):
        row, account, kept = found
    elif live.status is None:
        raise JobNotFoundError(f"no job {job_id!r}: `themes status` lists the jobs. {' '.join([*notes, found])}")
    else:
        notes.append(found)
        row, kept = row_of(live.status), []
        account = empty_job_stats(started_at=row.started_at or row.created_at, ended_at=row.finished_at or now)
    if live.status is None and not live.trouble:
        notes.append("Redis no longer knows this job; all of this is from the database.")
    status = live.status or status_of(row)
    return report_of(
        status, row, account, JobMeasurements.of(live.parts or kept), settings=said(settings),
        alive=None if live.pulse is None else len(live.pulse.workers), pulse=live.pulse,
        statements=live.statements, notes=notes, now=now,
    )  # fmt: skip


async def _stored(
    settings: Settings, job_id: str, live: Live, now: float
) -> tuple[JobRow, JobStats, list[ProcessMeasurements]] | str:
    """What the database has of a job, or why it has nothing. Raises DatabaseError where Redis is away too."""
    store = AsyncDatabaseManager.from_settings(settings)
    try:
        try:
            await store.open()
            row = await store.job(job_id)
        except DatabaseError as bad:
            if live.trouble:
                raise
            return f"Nothing is from the database: {bad}"
        if row is None:
            return "The database does not know this job yet: is a consumer running?"
        return row, await read_job_stats(store, row, now=now), await store.measurements(job_id)
    finally:
        await store.close()


def read_live(settings: Settings, job_id: str) -> Live:
    """What Redis says of a job, its workers and the consumers; nothing where there is to be none."""
    if not settings.redis.enabled:
        return Live()
    try:
        url = locate(settings)
        timeout = min(REDIS_SECONDS, settings.redis.socket_timeout_seconds)
        with connect(url, socket_timeout_seconds=timeout) as redis:
            check_server(redis)
            broker = settings.celery.broker_url
            with connect(broker, socket_timeout_seconds=timeout) if broker else contextlib.nullcontext(redis) as other:
                return _read(redis, other, job_id)
    except (RedisError, OSError, ThemesError) as bad:
        return Live(trouble=f"Redis does not answer, so this is what the database has: {bad}")


def _read(redis: Redis, broker: Redis, job_id: str) -> Live:
    live = Live(pulse=read_pulse(redis, broker), parts=read_measurements(redis, job_id))
    try:
        live.status = jobs.status(redis, job_id)
    except JobNotFoundError:
        return live
    if time.time() - (live.status.finished_at or time.time()) < RECENT_SECONDS:
        for report in fleet.consumers(redis).values():
            live.statements |= report.statements
    return live


def said(settings: Settings) -> dict[str, Any]:
    limits = settings.performance_optimization
    return {name: getattr(limits, name) for name in SAID} | {
        "requests_per_minute": settings.llm.requests_per_minute,
        "tokens_per_minute": settings.llm.tokens_per_minute,
    }


def row_of(status: JobStatus) -> JobRow:
    spent = (
        "llm_calls", "cache_hits", "coalesced", "prompt_tokens", "completion_tokens", "cached_tokens",
        "reasoning_tokens", "cost_usd",
    )  # fmt: skip
    same = ("job_id", "name", "total", "done", "failed", "partial", "created_at", "started_at", "finished_at")
    known: dict[str, Any] = {name: getattr(status, name) for name in same}
    return JobRow(
        **known, state=status.state if status.state in {"queued", "done", "cancelled"} else "running", sealed=False,
        usage=Usage(**{name: getattr(status, name) for name in spent}), options=None, revision=0,
    )  # fmt: skip
