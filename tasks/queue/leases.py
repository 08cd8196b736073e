"""Ends the leases of a worker process that is known to be dead, so that nobody waits for them to run out."""

from typing import Final

from redis import Redis

from tasks import keys
from tasks.connection import text_of

#: KEYS leases owners; ARGV prefix of the owner's token. Returns how many chunks are free now. Their leases are over;
#: the sweeper finds them as it finds every dead one, and sends their messages.
_RELEASE: Final = """
local owners = redis.call('HGETALL', KEYS[2])
local freed = 0
for i = 1, #owners, 2 do
  if string.sub(owners[i + 1], 1, #ARGV[1]) == ARGV[1] then
    freed = freed + redis.call('ZADD', KEYS[1], 'XX', 'CH', 0, owners[i])
  end
end
return freed
"""


def token_prefix(name: str, pid: int) -> str:
    """How the lease tokens of a worker process begin."""
    return f"{name}/{pid}/"


def release(redis: Redis, name: str, pid: int, incarnation: str) -> int:
    """End every lease of a dead process; returns how many chunks are free. A repetition changes nothing.

    `incarnation` is what its leases on prompts begin with: who waits for one of those takes it over.
    """
    redis.set(keys.dead(incarnation), "1", ex=keys.DEAD_SECONDS)
    freed = 0
    for member in redis.smembers(keys.ACTIVE):
        job_id = text_of(member)
        arguments = (keys.leases(job_id), keys.owners(job_id), token_prefix(name, pid))
        freed += int(redis.eval(_RELEASE, 2, *arguments))
    return freed
