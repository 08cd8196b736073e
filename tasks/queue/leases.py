"""Ends the leases of a worker process that is known to be dead, before they run out."""

from typing import Final

from redis import Redis

from tasks import keys
from tasks.connection import text_of
from tasks.lua import lua

_RELEASE: Final = lua(__file__, "release")


def token_prefix(name: str, pid: int) -> str:
    """How the lease tokens of a worker process begin."""
    return f"{name}/{pid}/"


def release(redis: Redis, name: str, pid: int, process_token: str) -> int:
    """End every lease of a dead process; returns how many chunks are free. A repetition changes nothing.

    `process_token` is what its leases on prompts begin with: a process that waits for one of those takes it over.
    """
    redis.set(keys.dead(process_token), "1", ex=keys.DEAD_SECONDS)
    freed = 0
    for member in redis.smembers(keys.ACTIVE):
        job_id = text_of(member)
        arguments = (keys.leases(job_id), keys.owners(job_id), token_prefix(name, pid))
        freed += int(redis.eval(_RELEASE, 2, *arguments))
    return freed
