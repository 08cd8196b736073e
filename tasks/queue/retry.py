"""Ask again for destinations of a job that failed, are partial, or were lost.

The database lists them; here they become chunks again, under the same job. What is still in the ledger is left to the
workers, and answers that were paid for are in the cache.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import msgspec
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.connection import check_server, connect, locate, translated
from tasks.errors import ConfigError, JobNotFoundError, UnreadableError
from tasks.jobs import budget
from tasks.jobs import registry as jobs
from tasks.messages import Chunk, Destination, JobOptions, JobReopened, JobSealed, unpack
from tasks.queue.ledger import write_chunks
from tasks.queue.producer import broker_of, cut, label, parts_of, publish
from tasks.storable import entry_fields

log = logging.getLogger("themes.retry")

#: Destinations that one entry of the stream and one round trip carry.
PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class KnownJob:
    """A job as the database knows it. `options` is JSON of `JobOptions`; `listed` counts its destinations."""

    job_id: str
    name: str
    created_at: float
    options: str | None
    is_sealed: bool
    listed: int
    done: int
    failed: int
    cost_usd: float | None
    #: Of the done ones, those whose profile lacks something.
    partial: int = 0


def check(redis: Redis, job: KnownJob) -> None:
    """Refuse what cannot be retried now.

    Raises:
        ConfigError: the job is paused, or is still being enqueued, or not all of it is in the database yet.
    """
    state, paused = _known(redis, job.job_id)
    if paused:
        raise ConfigError(f"job {job.job_id} is paused: first `themes resume {job.job_id}`")
    if job.is_sealed:
        return
    if redis.hget(keys.job(job.job_id), "sealed") == b"1" and has_nothing_left(redis, job.job_id):
        raise ConfigError(
            f"job {job.job_id}: the database does not list all of its destinations (is it an older copy?): `themes "
            f"cancel {job.job_id}`, then `themes enqueue FILE --only-missing` asks for what is missing"
        )
    if state in {"queued", "running", "stalled"}:
        raise ConfigError(
            f"job {job.job_id} is still being enqueued (or what enqueued it has died: then it is cancelled within a "
            "minute): try again later"
        )
    if not is_drained(redis):
        raise ConfigError(f"job {job.job_id} is not wholly in the database yet: is `themes consumer` running?")


def is_lost(redis: Redis, job: KnownJob) -> bool:
    """Whether what the ledger no longer has of this job will never come.

    So it is when the job has ended, when Redis no longer knows it, or when everything that was said is written: what
    has neither an outcome nor a chunk then fell out of the world.
    """
    state, _ = _known(redis, job.job_id)
    return state in {None, "done", "cancelled"} or is_drained(redis)


def _known(redis: Redis, job_id: str) -> tuple[str | None, str | None]:
    """State and pause of a job as Redis has them; nothing where it does not know the job, or cannot read its entry."""
    try:
        known = jobs.status(redis, job_id)
    except (JobNotFoundError, UnreadableError):
        return None, None  # the database has it, and a retry enters it anew
    return known.state, known.paused


def has_nothing_left(redis: Redis, job_id: str) -> bool:
    """Whether neither a chunk of a job nor a result is left: what the job lacks will not come by itself."""
    return not redis.exists(keys.chunks(job_id), keys.producer(job_id)) and is_drained(redis)


def is_drained(redis: Redis) -> bool:
    """Whether the consumer has written everything."""
    if not redis.exists(keys.RESULTS):
        return True
    last: Any = redis.xinfo_stream(keys.RESULTS)["last-generated-id"]
    groups: Any = redis.xinfo_groups(keys.RESULTS)
    return any(group["last-delivered-id"] == last and not group["pending"] for group in groups)


def retry(
    job: KnownJob,
    destinations: Sequence[Destination],
    *,
    attempt: int,
    settings: Settings,
    redis: Redis | None = None,
    adds: JobOptions | None = None,
) -> int:
    """Enqueue destinations of a job again; returns how many these are.

    Args:
        job: what the database knows.
        destinations: those without a whole profile. What the ledger still has of them is left alone.
        attempt: higher than any that these have had.
        settings: where Redis and the broker are.
        redis: a client to use instead of making one.
        adds: where fields are added to profiles, the job's options from now on.

    Raises:
        RedisUnavailableError: Redis cannot be used; `retry` may be repeated.
    """
    url = locate(settings)
    redis = redis or connect(url, socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    check_server(redis)
    broker = broker_of(redis, settings)
    options = adds or jobs.options_of(job.options)
    compress = settings.performance_optimization.enable_result_compression
    with translated(redis):
        held = _in_the_ledger(redis, job.job_id)
        wanted = [one for one in destinations if one.id not in held]
        if not wanted:
            return 0
        _reopen(redis, job, options, [one.id for one in wanted], attempt, compress=compress, adds=adds)
        # The first delivery of a chunk makes the attempt one higher.
        pieces = cut(iter(wanted), parts=parts_of(redis, settings), largest=settings.work.max_chunk_size)
        stamp = f"r{time.time_ns():x}"
        chunks = (
            (Chunk(job.job_id, f"{stamp}-{number:08d}", piece, attempt=attempt - 1), label(piece))
            for number, piece in enumerate(pieces)
        )
        while page := list(islice(chunks, PAGE)):
            with redis.pipeline(transaction=True) as pipeline:
                write_chunks(pipeline, job.job_id, page, compress=compress)
                pipeline.execute()
            publish(broker, job.job_id, [(chunk.chunk_id, text) for chunk, text in page], options.priority)
    return len(wanted)


def _in_the_ledger(redis: Redis, job_id: str) -> set[str]:
    held: set[str] = set()
    for chunk_id, packed in redis.hscan_iter(keys.chunks(job_id), count=100):
        finished: Any = redis.smembers(keys.finished(job_id, chunk_id.decode()))
        done = {member.decode() for member in finished}
        held.update(one.id for one in unpack(packed, Chunk).destinations if one.id not in done)
    return held


def _reopen(  # what a reopened job is
    redis: Redis,
    job: KnownJob,
    options: JobOptions,
    ids: list[str],
    attempt: int,
    *,
    compress: bool,
    adds: JobOptions | None = None,
) -> None:
    """Let the job run again, also one that Redis has forgotten; the database is told before any chunk is there."""
    job_id = job.job_id
    # Progress begins anew: the job is not stalled since the day on which it ended.
    fields: dict[Any, Any] = {"state": "running", "sealed": 1, "total": job.listed, "rate_at": time.time()}
    if adds:
        fields["options"] = msgspec.json.encode(adds)
    try:
        jobs.status(redis, job_id)
    except (JobNotFoundError, UnreadableError) as exc:
        log.info("action=job_entered job_id=%s is entered anew: %s", job_id, exc)
        redis.delete(keys.job(job_id), keys.budget(job_id))
        fields |= {
            "job_id": job_id,
            "name": job.name,
            "done": job.done,
            "failed": job.failed,
            "created_at": job.created_at,
            "options": msgspec.json.encode(options),
        }
    with redis.pipeline(transaction=True) as pipeline:
        pipeline.hset(keys.job(job_id), mapping=fields)
        # A job that was cancelled while it was paused has both in its entry.
        pipeline.hdel(keys.job(job_id), "finished_at", "ended", *keys.PAUSED)
        pipeline.persist(keys.job(job_id))
        pipeline.persist(keys.events(job_id))
        if options.has_budget:
            pipeline.hset(keys.budget(job_id), mapping=budget.fields_of(options))
            pipeline.hsetnx(keys.budget(job_id), budget.SPENT, budget.nano_usd(job.cost_usd or 0.0))
            pipeline.persist(keys.budget(job_id))
        pipeline.zadd(keys.JOBS, {job_id: job.created_at}, nx=True)
        pipeline.sadd(keys.ACTIVE, job_id)
        if not job.is_sealed:
            pipeline.xadd(keys.RESULTS, entry_fields(JobSealed(job_id, job.listed), compress=compress))
        for start in range(0, len(ids), PAGE):
            page = tuple(ids[start : start + PAGE])
            pipeline.xadd(keys.RESULTS, entry_fields(JobReopened(job_id, page, attempt, adds), compress=compress))
        pipeline.execute()
