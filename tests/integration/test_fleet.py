"""Who lives, by the heartbeats."""

from redis import Redis

from tasks import keys
from tasks import worker_reports as fleet
from tasks.connection import connect_async


async def test_the_lanes_of_live_workers_count_and_those_of_dead_ones_do_not(redis: Redis, redis_url: str) -> None:
    client = connect_async(redis_url, socket_timeout_seconds=180)
    assert fleet.live_lanes(redis) == 0
    await fleet.write_report(client, fleet.WORKER, "a", {"lanes": 12, "lanes_busy": 12, "lanes_waiting": 3})
    await fleet.write_report(client, fleet.WORKER, "b", {"lanes": 4, "lanes_busy": 1, "lanes_waiting": 0})
    await fleet.write_report(client, fleet.WORKER, "c", {"lanes": 8, "lanes_busy": 2, "lanes_waiting": 0})
    assert fleet.live_lanes(redis) == 24
    assert await fleet.idle_lanes(client, besides="a") == 3 + 6
    assert await fleet.idle_lanes(client, besides="b") == 6
    redis.delete(keys.worker("c"))  # killed: its hash has expired
    await fleet.remove_report(client, fleet.WORKER, "b")
    assert fleet.live_lanes(redis) == 12
    assert fleet.workers(redis)["a"].lanes_waiting == 3
    assert redis.zrange(keys.WORKERS, 0, -1) == [b"a", b"c"]
    await client.aclose()


async def test_names_of_workers_that_are_long_gone_are_forgotten(redis: Redis, redis_url: str) -> None:
    client = connect_async(redis_url, socket_timeout_seconds=180)
    redis.zadd(keys.WORKERS, {"old": 1})
    await fleet.write_report(client, fleet.WORKER, "new", {"lanes": 1})
    assert redis.zrange(keys.WORKERS, 0, -1) == [b"new"]
    await client.aclose()
