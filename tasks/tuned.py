"""Changes of settings that outlive the worker process that they were made on.

They stay until they are taken back: a worker that is started again, or is new, must keep to the same shared limits as
the others, whatever its file says.
"""

from collections.abc import Mapping
from typing import Final

from redis import Redis

from tasks import keys
from tasks.connection import text_of

#: In a field's name: the change is for all workers.
ALL: Final = "*"
_SEPARATOR: Final = "|"


def read(redis: Redis, worker: str) -> dict[str, str]:
    """What is kept for one worker: key -> text; what was said to it alone wins."""
    for_all: dict[str, str] = {}
    for_one: dict[str, str] = {}
    for field, value in redis.hgetall(keys.TUNED).items():
        who, _, key = text_of(field).rpartition(_SEPARATOR)
        if who == ALL:
            for_all[key] = text_of(value)
        elif who == worker:
            for_one[key] = text_of(value)
    return for_all | for_one


def keep(redis: Redis, changes: Mapping[str, str], *, worker: str = ALL) -> None:
    """Keep changes for one worker, or for all, whatever one of them was told before."""
    stale = [
        field
        for field in redis.hkeys(keys.TUNED)
        if worker == ALL and text_of(field).rpartition(_SEPARATOR)[2] in changes
    ]
    with redis.pipeline(transaction=True) as pipeline:
        if stale:
            pipeline.hdel(keys.TUNED, *stale)
        pipeline.hset(keys.TUNED, mapping={f"{worker}{_SEPARATOR}{key}": text for key, text in changes.items()})
        pipeline.execute()


def forget(redis: Redis, *, worker: str = ALL) -> None:
    """Keep nothing any more: for one worker, or at all."""
    if worker == ALL:
        redis.delete(keys.TUNED)
        return
    stale = [field for field in redis.hkeys(keys.TUNED) if text_of(field).rpartition(_SEPARATOR)[0] == worker]
    if stale:
        redis.hdel(keys.TUNED, *stale)
