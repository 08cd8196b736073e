"""Batches of a job, as the workers write them into Redis."""

from typing import Any

import msgspec
from redis import Redis

from tasks import keys
from tasks.jobs.batches import Batch


def batch(tag: str, **fields: Any) -> Batch:
    """A batch that a provider has, if no field says otherwise."""
    usual: dict[str, Any] = {
        "job_id": "j", "endpoint": "llm", "model": "m", "formed_at": 1000.0, "asked_at": 1000.0, "state": "running",
        "requests": 100, "id": "" if fields.get("state") in {"forming", "ready", "uploaded"} else f"batch_{tag}",
    }  # fmt: skip
    return Batch(tag, **(usual | fields))


def put(redis: Redis, job_id: str, *batches: Batch, waiting: int = 0) -> None:
    """Write them over those that a job has."""
    redis.delete(keys.batches(job_id), keys.batch_shelves(job_id))
    for one in batches:
        redis.hset(keys.batches(job_id), one.tag, msgspec.json.encode(msgspec.structs.replace(one, job_id=job_id)))
    if waiting:
        redis.hset(keys.batch_shelves(job_id), "llm/m", waiting)
