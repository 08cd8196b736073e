"""The proxy does what it says: otherwise every other test here proves nothing."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ExecAbortError, OutOfMemoryError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from tests.faults.proxy import Mode, Proxy
from tests.faults.wire import resp_end


@pytest.fixture
def proxy(redis: Redis) -> Iterator[Proxy]:
    with Proxy() as made:
        yield made


@pytest.fixture
def client(proxy: Proxy, redis: Redis) -> Iterator[Redis]:
    """A client behind the door `door` that tries nothing twice."""
    options = redis.connection_pool.connection_kwargs
    port = proxy.listen("door", options["port"])
    one = Redis(
        port=port, db=options["db"], password=options["password"], retry=Retry(NoBackoff(), 0), socket_timeout=0.5
    )
    with one:
        one.ping()
        yield one


def test_a_command_lost_before_it_arrives_has_no_effect(proxy: Proxy, client: Redis, redis: Redis) -> None:
    proxy.arm("door", mode=Mode.LOST_BEFORE, commands=["INCRBY"], nth=2)
    client.incr("n")
    with pytest.raises(RedisConnectionError):
        client.incr("n")
    assert redis.get("n") == b"1"
    assert proxy.sprung("door") == ["INCRBY"]
    client.incr("n")
    assert redis.get("n") == b"2"


def test_a_command_whose_reply_is_lost_has_taken_effect(proxy: Proxy, client: Redis, redis: Redis) -> None:
    proxy.arm("door", mode=Mode.LOST_AFTER, commands=["INCRBY"])
    with pytest.raises(RedisConnectionError):
        client.incr("n")
    assert redis.get("n") == b"1"


def test_a_refused_command_gets_the_error_of_a_real_server(proxy: Proxy, client: Redis, redis: Redis) -> None:
    proxy.arm("door", mode=Mode.REFUSED, commands=["SET"])
    with pytest.raises(OutOfMemoryError):
        client.set("n", 1)
    proxy.arm("door", mode=Mode.REFUSED, commands=["GET"])
    with pytest.raises(BusyLoadingError):
        client.get("n")
    assert redis.get("n") is None
    client.set("n", 1)
    assert client.get("n") == b"1"


@pytest.mark.parametrize("command", ["SET", "EXEC"])
def test_a_refused_command_spoils_its_transaction(proxy: Proxy, client: Redis, redis: Redis, command: str) -> None:
    proxy.arm("door", mode=Mode.REFUSED, commands=[command])
    with client.pipeline(transaction=True) as pipeline:
        pipeline.incr("a").set("b", 1).incr("c")
        with pytest.raises((ExecAbortError, OutOfMemoryError)):
            pipeline.execute()
    assert redis.exists("a", "b", "c") == 0
    assert client.incr("a") == 1


def test_replies_of_one_pipeline_before_and_after_the_fault_arrive(proxy: Proxy, client: Redis, redis: Redis) -> None:
    proxy.arm("door", mode=Mode.REFUSED, commands=["SET"], nth=2)
    with client.pipeline(transaction=False) as pipeline:
        pipeline.set("a", 1).get("a").set("a", 5).incr("a")
        replies = pipeline.execute(raise_on_error=False)
    assert isinstance(replies.pop(2), OutOfMemoryError)
    assert replies == [True, b"1", 2]


def test_a_frozen_door_lets_nothing_through_and_loses_nothing(proxy: Proxy, client: Redis, redis: Redis) -> None:
    proxy.freeze("door", on=True)
    with pytest.raises(RedisTimeoutError):
        client.incr("n")
    proxy.freeze("door", on=False)
    client.ping()
    proxy.refuse("door", on=True)
    with pytest.raises(RedisConnectionError):
        client.ping()
    proxy.refuse("door", on=False)
    assert client.ping()


@pytest.mark.parametrize(("mode", "value"), [(Mode.KILLED_BEFORE, None), (Mode.KILLED_AFTER, b"1")])
def test_the_process_that_sends_the_command_is_killed(
    proxy: Proxy, client: Redis, redis: Redis, mode: Mode, value: bytes | None
) -> None:
    proxy.arm("door", mode=mode, commands=["INCRBY"])
    options = client.connection_pool.connection_kwargs
    code = f"""
from redis import Redis
Redis(port={options["port"]}, db={options["db"]}, password={options["password"]!r}).incr("n")
"""
    died = subprocess.run([sys.executable, "-c", code], check=False, timeout=180)
    assert died.returncode == -signal.SIGKILL
    assert redis.get("n") == value


def test_every_reply_ends_where_the_next_begins() -> None:
    values = [
        b"+OK\r\n", b"$3\r\na\r\n\r\n", b"$-1\r\n", b"*0\r\n", b"*-1\r\n", b"_\r\n", b":5\r\n", b",1.5\r\n", b"#t\r\n",
        b"*2\r\n$1\r\na\r\n*1\r\n:1\r\n", b"%1\r\n+a\r\n~2\r\n:1\r\n:2\r\n", b">2\r\n+message\r\n$0\r\n\r\n",
        b"=7\r\ntxt:abc\r\n",
    ]  # fmt: skip
    for value in values:
        assert resp_end(bytearray(value + b"+next\r\n"), 0) == len(value), value
        for cut in range(len(value)):
            assert resp_end(bytearray(value[:cut]), 0) is None, (value, cut)
