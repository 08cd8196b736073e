"""What a URL of sentinels says, and which server the connections lead to."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from config.settings import load
from tasks.connection import check_rights, check_server, connect, connect_async, place_of
from tasks.errors import ConfigError, RedisUnavailableError
from tasks.queue.app import app, configure
from tasks.redis_url import masked, parsed
from tests.faults.stack import free_port, until
from tests.support.servers import Node, node, server
from tests.support.tls import certificate


@pytest.mark.parametrize(
    ("url", "text", "sentinels"),
    [
        ("sentinel://a/1?master=m", "redis://a:26379/1", [("a", 26_379)]),
        ("sentinel://me:p%40w@a:1,b/2?master=m", "redis://me:p%40w@a:1/2", [("a", 1), ("b", 26_379)]),
        ("redis-sentinel://[::1]:3?master=m", "redis://[::1]:3", [("::1", 3)]),
        ("sentinel://:pw@a:1/2;sentinel://b:2?master=m", "redis://:pw@a:1/2", [("a", 1), ("b", 2)]),
        ("rediss-sentinel://a:1/2?master=m&ssl_cert_reqs=CERT_NONE", "rediss://a:1/2?ssl_cert_reqs=none", [("a", 1)]),
    ],
)  # fmt: skip
def test_a_url_names_the_sentinels_and_the_master(url: str, text: str, sentinels: list[tuple[str, int]]) -> None:
    found = parsed(url)
    assert (found.text, list(found.sentinels), found.master) == (text, sentinels, "m")


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://", "sentinel://a", "sentinel://a/1", "sentinel://a,/1?master=m", "sentinel://a:x/1?master=m",
        "sentinel://a/x?master=m", "sentinel://:sec/ret@a/1?master=m", "sentinel://a:0/1?master=m",
        "sentinel://:secret@a:1/1;redis://b/1?master=m", "sentinel://a/1?master=m&colour=red",
        "sentinel://me:secret@a:1,me:secret@b:2/1?master=m",
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", [connect, connect_async])
def test_a_malformed_url_is_a_configuration_error(url: str, make: Callable[..., object]) -> None:
    with pytest.raises(ConfigError, match="^redis_url: ") as caught:
        make(url, socket_timeout_seconds=1)
    assert "secret" not in str(caught.value)
    assert "ret@" not in str(caught.value)


def test_no_password_of_a_url_is_shown() -> None:
    url = "sentinel://:secret@a:1,b:2/1?master=m&sentinel_password=hidden"
    assert masked(url) == "sentinel://:***@a:1,b:2/1?master=m&sentinel_password=***"
    assert masked("sentinel://a:1,b:2/1?master=m") == "sentinel://a:1,b:2/1?master=m"
    with connect(url, socket_timeout_seconds=1) as client:
        shown = repr(client) + repr(parsed(url)) + place_of(client)
    assert "secret" not in shown
    assert "hidden" not in shown
    configure(load(env={}), url)
    shown = repr(app.conf.broker_transport_options) + app.connection().as_uri()
    assert "secret" not in shown
    assert "hidden" not in shown


def test_a_sentinel_that_names_a_replica_is_not_believed(tmp_path: Path) -> None:
    def sentinel_of(server: Node) -> str:
        return f"sentinel monitor ours 127.0.0.1 {server.port} 2"

    with (
        node(tmp_path / "master", "repl-diskless-sync-delay 0") as master,
        node(tmp_path / "r", f"replicaof 127.0.0.1 {master.port}") as replica,
    ):
        until("the replica to be in step", lambda: replica.client.info()["master_link_status"] == "up")
        with node(tmp_path / "old", sentinel_of(replica)) as old, node(tmp_path / "new", sentinel_of(master)) as new:
            hosts = f"127.0.0.1:{old.port},127.0.0.1:{new.port}"
            with connect(f"sentinel://{hosts}/1?master=ours", socket_timeout_seconds=180) as client:
                client.set("themes:a", 1)
            assert master.client.info("keyspace")["db1"]["keys"] == 1
            url = f"sentinel://127.0.0.1:{old.port}/1?master=ours"
            with (
                connect(url, socket_timeout_seconds=180) as client,
                pytest.raises(RedisConnectionError, match="is no mas"),
            ):
                client.get("themes:a")


def test_what_the_sentinels_do_not_know_is_said_in_one_line(tmp_path: Path) -> None:
    with node(tmp_path / "plain") as plain, node(tmp_path / "s", "sentinel myid " + "1" * 40) as sentinel:
        hosts = ",".join(f"127.0.0.1:{port}" for port in (free_port(), sentinel.port, plain.port))
        url = f"sentinel://{hosts}/1?master=ours"
        with connect(url, socket_timeout_seconds=180) as client, pytest.raises(RedisUnavailableError) as caught:
            check_server(client)
    said = str(caught.value)
    assert "refused" in said
    assert "knows no master ours" in said
    assert "\n" not in said


async def test_connections_follow_a_master_that_becomes_a_replica(tmp_path: Path) -> None:
    with (
        node(tmp_path / "master", "repl-diskless-sync-delay 0") as master,
        node(tmp_path / "r", f"replicaof 127.0.0.1 {master.port}") as replica,
        node(tmp_path / "s", f"sentinel monitor ours 127.0.0.1 {master.port} 2") as sentinel,
    ):
        until("the replica to be in step", lambda: replica.client.info()["master_link_status"] == "up")
        url = f"sentinel://127.0.0.1:{sentinel.port}/1?master=ours"
        client, other = connect(url, socket_timeout_seconds=180), connect_async(url, socket_timeout_seconds=180)
        client.incr("themes:a")
        await other.incr("themes:a")
        until("the replica to hear of it", lambda: master.client.wait(1, 1_000))
        replica.client.execute_command("REPLICAOF", "NO", "ONE")
        sentinel.client.sentinel_remove("ours")
        sentinel.client.sentinel_monitor("ours", "127.0.0.1", replica.port, 2)
        # Their connections stay, to a server that takes no writes any more.
        master.client.execute_command("REPLICAOF", "127.0.0.1", str(replica.port))
        assert client.incr("themes:a") == 3
        assert await other.incr("themes:a") == 4
        assert replica.client.info("keyspace")["db1"]["keys"] == 1
        client.close()
        await other.aclose()


def test_sentinels_and_their_master_are_reached_by_tls(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    binary, files = server("redis 7.0"), certificate(tmp_path, "redis")
    with node(tmp_path / "master", binary=binary, tls=files) as master:
        monitor = f"sentinel monitor ours 127.0.0.1 {master.port} 1"
        with node(tmp_path / "sentinel", monitor, binary=binary, tls=files) as sentinel:
            url = f"rediss-sentinel://127.0.0.1:{sentinel.port}/1?master=ours"
            with connect(f"{url}&ssl_ca_certs={files[0]}", socket_timeout_seconds=180) as client:
                check_server(client)
                check_rights(client)
            refusal = pytest.raises(RedisUnavailableError, match="certificate verify failed")
            with connect(url, socket_timeout_seconds=180) as client, refusal:
                check_server(client)
            with configure(load(env={}), f"{url}&ssl_ca_certs={files[0]}").connection() as broker:
                broker.ensure_connection(max_retries=1)
                broker.default_channel.client.ping()
