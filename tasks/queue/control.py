"""Pause and resume a job.

A paused job's chunks are not handed out, and workers that hold some stop asking; calls under way are awaited and
cached. `resume` raises a used-up limit, clears the pause, and wakes workers for what waits.
"""

from typing import Any

import msgspec
from redis import Redis

from config.settings import Settings, load
from tasks import keys
from tasks.connection import check_server, connect, connected, locate, text_of, translated
from tasks.errors import ConfigError
from tasks.jobs import budget
from tasks.jobs import registry as jobs
from tasks.jobs.pauses import format_paused
from tasks.messages import JobOptions
from tasks.queue.ledger import PAUSE, pause_arguments
from tasks.queue.producer import broker_of, publish


def pause(job_id: str, *, settings: Settings | None = None, redis: Redis | None = None) -> jobs.JobStatus:
    """Let a job rest until it is resumed; returns its status. One that rests already is left as it is.

    Raises:
        JobNotFoundError: Redis knows no such job.
        ConfigError: the job has ended.
        RedisUnavailableError: Redis cannot be used.
    """
    settings = settings or load()
    redis = redis or connected(settings)
    check_server(redis)
    with translated(redis):
        known = jobs.status(redis, job_id)
        if known.is_final:
            raise ConfigError(f"job {job_id} is {known.state}: there is nothing to pause")
        places = keys.job(job_id), keys.budget(job_id), keys.events(job_id)
        redis.eval(PAUSE, len(places), *places, *pause_arguments(job_id, "user", "paused"))
        return jobs.status(redis, job_id)


def resume(
    job_id: str, *, budget_usd: float | None = None, settings: Settings | None = None, redis: Redis | None = None
) -> jobs.JobStatus:
    """Let a paused job go on, with another budget where one is given; returns its status.

    Also raises the budget of a job that runs.

    Raises:
        JobNotFoundError: Redis knows no such job.
        ConfigError: there is nothing to resume, or the budget would not last for a single call.
        RedisUnavailableError: Redis cannot be used.
    """
    settings = settings or load()
    url = locate(settings)
    redis = redis or connect(url, socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    check_server(redis)
    with translated(redis):
        known = jobs.status(redis, job_id)
        _check(known, budget_usd, settings)
        options = _options(redis, job_id, budget_usd)
        with redis.pipeline(transaction=True) as pipeline:
            if budget_usd is not None:
                pipeline.hset(keys.budget(job_id), budget.LIMIT, budget.nano_usd(budget_usd))
                pipeline.hset(keys.job(job_id), "options", msgspec.json.encode(options))
            pipeline.hdel(keys.job(job_id), *keys.PAUSED)
            pipeline.execute()
        # After the pause has gone: a worker that came before would have nothing to do.
        if known.paused:
            publish(broker_of(redis, settings), job_id, waiting_chunks(redis, job_id), options.priority)
        return jobs.status(redis, job_id)


def waiting_chunks(redis: Redis, job_id: str) -> list[tuple[str, str]]:
    """Chunks without a lease, with their labels, in the order in which they were made."""
    known: list[Any] = redis.hkeys(keys.chunks(job_id))
    waiting = sorted(set(known) - set(redis.zrange(keys.leases(job_id), 0, -1)))
    if not waiting:
        return []
    labels: list[Any] = redis.hmget(keys.labels(job_id), waiting)
    return [(text_of(one), text_of(label or one)) for one, label in zip(waiting, labels, strict=True)]


def _check(known: jobs.JobStatus, budget_usd: float | None, settings: Settings) -> None:
    if known.is_final:
        raise ConfigError(f"job {known.job_id} is {known.state}: there is nothing to resume")
    if budget_usd is None:
        if known.paused is None:
            raise ConfigError(f"job {known.job_id} is not paused: there is nothing to resume")
        if known.paused == "budget":
            raise ConfigError(f"job {known.job_id} is {format_paused(known)}")
        return
    if known.budget_usd is None and known.paused is None:
        raise ConfigError(f"job {known.job_id} has no budget that could be raised")
    budget.check(budget_usd, settings)
    if known.spent_usd is not None and budget_usd <= known.spent_usd:
        spent = budget.dollars(known.spent_usd)
        raise ConfigError(f"--budget {budget_usd:g}: {spent} are spent already; give more than that")


def _options(redis: Redis, job_id: str, budget_usd: float | None) -> JobOptions:
    raw: Any = redis.hget(keys.job(job_id), "options")
    options = jobs.options_of(raw)
    return options if budget_usd is None else msgspec.structs.replace(options, budget_usd=budget_usd)
