"""Changes of settings on running workers: kept until they are taken back, also for workers that start later."""

from collections.abc import Mapping
from typing import Final

from redis import Redis

from tasks import keys
from tasks.connection import text_of
from tasks.errors import UnreadableError
from tasks.readings import replies_of, texts

#: In a field's name: the change is for all workers.
ALL: Final = "*"
_SEPARATOR: Final = "|"


def read(redis: Redis, worker: str) -> dict[str, str]:
    """What is kept for one worker: key -> text; what was said to it alone wins."""
    found = kept(redis)
    for_all = {key: text for who, key, text in found if who == ALL}
    return for_all | {key: text for who, key, text in found if who == worker}


def kept(redis: Redis) -> list[tuple[str, str, str]]:
    """All that is kept, in order: worker (or `*`), key, text. Raises UnreadableError: its key holds no hash."""
    found = []
    (reply,) = replies_of(redis, [keys.TUNED])
    try:
        fields = texts(reply)
    except UnreadableError as exc:
        raise UnreadableError(f"{keys.TUNED}: {exc}; `themes tune --reset` deletes it") from exc
    for field, text in fields.items():
        who, _, key = field.rpartition(_SEPARATOR)
        found.append((who, key, text))
    return sorted(found)


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
