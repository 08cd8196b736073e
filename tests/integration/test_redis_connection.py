"""Which Redis is used, and the one line that says why another is not."""

import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from kombu import Connection as KombuConnection
from redis import DataError, Redis
from redis import exceptions as redis_errors

from config.settings import Settings
from scripts.lib.local_redis import LocalRedis, find_binary, version_of
from tasks import connection
from tasks.connection import ADDRESS_FILE, OLDEST, check_server, connect, connect_async, locate
from tasks.errors import ConfigError, RedisUnavailableError
from tasks.redis_url import masked


def _refusal(url: str) -> str:
    with pytest.raises(RedisUnavailableError) as caught, connect(url, socket_timeout_seconds=2) as client:
        check_server(client)
    said = str(caught.value)
    assert "\n" not in said
    return said


@contextmanager
def _server(answer: Callable[[bytes], bytes]) -> Iterator[int]:
    """A TCP server with an answer to whatever it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    peer.settimeout(30)
                    try:
                        while got := peer.recv(65_536):
                            peer.sendall(answer(got))
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(180)


def test_a_healthy_server_says_what_it_is(redis_url: str) -> None:
    with connect(redis_url, socket_timeout_seconds=5) as client:
        facts = check_server(client)
    assert facts.policy == "volatile-lru"
    assert facts.is_persistent


def test_nobody_there_says_how_to_start_one() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        said = _refusal(f"redis://127.0.0.1:{port}/1")
    assert f"127.0.0.1:{port}/1 cannot be reached" in said
    assert "themes up" in said


def test_an_unknown_host_is_named() -> None:
    assert "no.such.host.invalid" in _refusal("redis://no.such.host.invalid:6379/0")


@pytest.mark.parametrize("password", [":wrong@", ""])
def test_a_wrong_or_missing_password_is_told_apart_and_never_shown(password: str, redis_url: str) -> None:
    place = redis_url.rpartition("@")[2]
    said = _refusal(f"redis://{password}{place}")
    assert "password" in said
    assert "wrong@" not in said
    assert redis_url.partition("@")[0].rpartition(":")[2] not in said


def test_something_else_on_that_port_is_no_redis() -> None:
    with _server(lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert "Redis" in _refusal(f"redis://127.0.0.1:{port}/0")


def _redis_5(got: bytes) -> bytes:
    """As Redis 5.0 answers: no HELLO yet, and INFO with its version. Commands come one or several at a time."""
    info = b"redis_version:5.0.7\r\nmaxmemory_policy:noeviction\r\n"
    answers = []
    for command in got.split(b"*")[1:]:
        name = command.split(b"\r\n")[2].upper()
        known = {b"INFO": b"$%d\r\n%s\r\n" % (len(info), info), b"HELLO": b"-ERR unknown command `HELLO`\r\n"}
        known[b"PING"] = b"+PONG\r\n"
        answers.append(known.get(name, b"+OK\r\n"))
    return b"".join(answers)


def test_a_server_that_is_too_old_is_refused() -> None:
    with _server(_redis_5) as port:
        said = _refusal(f"redis://127.0.0.1:{port}/0")
    assert "6.2 or newer is needed" in said


def test_a_policy_that_deletes_the_queue_is_refused(redis: Redis, redis_url: str) -> None:
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert "volatile-lru" in _refusal(redis_url)
    finally:
        redis.config_set("maxmemory-policy", "volatile-lru")


@pytest.mark.parametrize(
    "url",
    [
        "", "localhost:6379", "http://localhost", "redis://localhost:port/1", "redis://localhost:99999/1",
        "redis://[::1/1", "redis://localhost/abc", "redis://localhost/-1", "redis://localhost/1/2",
        "redis://localhost/1?colour=red", "redis://localhost/1?db=x", "redis://localhost/1?socket_timeout=x",
        "unix:///run/redis.sock",
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", [connect, connect_async])
def test_a_malformed_url_is_a_configuration_error(url: str, make: Callable[..., object]) -> None:
    with pytest.raises(ConfigError, match="^redis_url: .*"):
        make(url, socket_timeout_seconds=1)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:se/cret@h:1/1", "redis://:se#cret@h/1", "redis://:s?ecret@h/1",
        "redis://me:secret", "http://:secret@h/1", "redis://h/1?password=secret&colour=red", "redis://:sec@ret@[::1/1",
        "redis://:12/secret@h/x",
    ],
)  # fmt: skip
def test_no_piece_of_a_password_that_was_not_escaped_is_shown(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(url, socket_timeout_seconds=1)
    told = "".join(traceback.format_exception(caught.value))
    shown = "\n".join(line for line in told.splitlines() if "Error" in line)
    for piece in ("secret", "cret", "ecret", "'se'", "sec@"):
        assert piece not in shown


def test_a_database_that_the_server_does_not_have_is_named(redis_url: str) -> None:
    said = _refusal(f"{redis_url.rpartition('/')[0]}/99")
    assert "/99 has no database of this number" in said
    assert "REDIS_URL" in said


def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    asked: list[bytes] = []

    def silent(what: bytes) -> bytes:
        asked.append(what)
        return b""

    with _server(silent) as port:
        assert "does not answer in time" in _refusal(f"redis://127.0.0.1:{port}/0")
    assert len(asked) == 1, "a server that is silent once is not asked again and again"


@pytest.mark.parametrize("rubbish", [b"SSH-2.0-OpenSSH_9.2\r\n", b"$x\r\n", b"\x15\x03\x01\x00\x02", b"+OK\r\n" * 9])
def test_whatever_else_answers_there_is_refused_in_one_line(rubbish: bytes) -> None:
    with _server(lambda _: rubbish) as port:
        assert f"127.0.0.1:{port}" in _refusal(f"redis://127.0.0.1:{port}/0")


def _speaking(*infos: bytes) -> Callable[[bytes], bytes]:
    """A server of RESP 2 with these answers to INFO, the last one for ever."""
    left = list(infos)

    def one(command: bytes) -> bytes:
        name = command.split(b"\r\n")[2].upper()
        if name != b"INFO":
            return b"+PONG\r\n" if name == b"PING" else b"+OK\r\n"
        info = left.pop(0) if len(left) > 1 else left[0]
        return b"$%d\r\n%s\r\n" % (len(info), info)

    return lambda got: b"".join(one(command) for command in got.split(b"*")[1:])


@pytest.mark.parametrize(
    ("info", "told"),
    [
        (b"redis_version:6.0.16\r\n", "version 6.0.16, 6.2 or newer is needed"),
        (b"redis_version:7.2.4\r\nrole:slave\r\nslave_read_only:1\r\n", "read-only replica"),
        (b"redis_version:7.2.4\r\ncluster_enabled:1\r\n", "is a cluster"),
        (b"redis_version:7.2.4\r\nmaxmemory_policy:allkeys-lfu\r\n", "volatile-lru"),
    ],
)
def test_a_server_that_cannot_be_used_says_why(info: bytes, told: str) -> None:
    with _server(_speaking(info)) as port:
        assert told in _refusal(f"redis://127.0.0.1:{port}/0?protocol=2")


def test_valkey_is_as_good_as_redis() -> None:
    info = b"redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0\r\nmaxmemory_policy:noeviction\r\n"
    with (
        _server(_speaking(info)) as port,
        connect(f"redis://127.0.0.1:{port}/0?protocol=2", socket_timeout_seconds=2) as client,
    ):
        assert check_server(client).version == "7.2.4"


def test_a_server_that_is_loading_its_data_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    loading, loaded = (b"redis_version:6.2.14\r\nloading:%d\r\n" % number for number in (1, 0))
    with (
        _server(_speaking(loading, loading, loaded)) as port,
        connect(f"redis://127.0.0.1:{port}/0?protocol=2", socket_timeout_seconds=2) as client,
    ):
        assert check_server(client).version == "6.2.14"
    monkeypatch.setattr(connection, "LOADING_SECONDS", 0.0)
    with _server(_speaking(loading)) as port:
        assert "still loading" in _refusal(f"redis://127.0.0.1:{port}/0?protocol=2")


def test_a_user_who_may_not_ask_is_told_what_to_allow(redis: Redis, redis_url: str) -> None:
    redis.acl_setuser("narrow", enabled=True, passwords=["+pw"], keys=["themes:*"], commands=["+ping", "+select"])
    try:
        place = redis_url.rpartition("@")[2]
        assert "themes:*" in _refusal(f"redis://narrow:pw@{place}")
    finally:
        redis.acl_deluser("narrow")


def test_passwords_are_masked() -> None:
    assert masked("redis://:secret@host:1/2") == "redis://:***@host:1/2"
    assert masked("redis://me:secret@host:1/2") == "redis://me:***@host:1/2"
    assert masked("redis://host:1/2") == "redis://host:1/2"
    assert masked("redis://[::1]:6379/2") == "redis://[::1]:6379/2"
    assert masked("sqlite+aiosqlite:////tmp/a:b/c@d.db") == "sqlite+aiosqlite:////tmp/a:b/c@d.db"


def test_a_url_that_was_set_is_never_replaced(settings_for: Callable[..., Settings], tmp_path: Path) -> None:
    with LocalRedis(tmp_path / "var", "auto") as server:
        assert locate(settings_for()) == server.url
        assert locate(settings_for(REDIS_URL="redis://elsewhere:1/1")) == "redis://elsewhere:1/1"
    assert locate(settings_for()) == "redis://localhost:6379/1"


def test_an_address_left_by_a_dead_server_is_ignored(settings_for: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / ADDRESS_FILE).write_text("redis://:x@127.0.0.1:1/1\n")
    assert locate(settings_for()) == "redis://localhost:6379/1"
    with LocalRedis(tmp_path / "var", "auto") as server:
        assert locate(settings_for()) == server.url


def test_the_address_is_readable_by_its_owner_only_and_the_password_is_in_no_argument(tmp_path: Path) -> None:
    with LocalRedis(tmp_path, "auto") as server:
        mode = (tmp_path / ADDRESS_FILE).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
        assert server.pid
        password = server.url.split(":")[2].split("@")[0]
        assert password not in " ".join(psutil.Process(server.pid).cmdline())


def test_a_second_start_finds_the_first_and_leaves_it_alone(tmp_path: Path) -> None:
    with LocalRedis(tmp_path, "auto") as first:
        with LocalRedis(tmp_path, "auto") as second:
            assert second.url == first.url
            assert second.pid is None
        with Redis.from_url(first.url) as client:
            assert client.ping()


def test_what_was_acknowledged_survives_a_restart(tmp_path: Path) -> None:
    for number in range(3):
        with LocalRedis(tmp_path, "auto") as server, Redis.from_url(server.url) as client:
            assert client.incr("starts") == number + 1


def test_it_dies_with_its_parent_however_that_dies(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from scripts.lib.local_redis import LocalRedis\n"
        "with LocalRedis(Path(sys.argv[1])) as server:\n"
        "    print(server.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "redis-server outlived its parent"
            time.sleep(0.02)


def test_the_bundled_server_is_a_real_one_and_new_enough() -> None:
    assert version_of(find_binary("bundled")) >= OLDEST


def test_without_any_server_the_lines_that_install_one_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RedisUnavailableError, match="apt-get install redis-server"):
        find_binary("system")


def test_a_server_on_the_path_that_is_too_old_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho Redis server v=5.0.3 sha=0\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert version_of(old) == (5, 0)
    assert find_binary("auto") != old


@pytest.mark.parametrize("spelled", ["none", "CERT_NONE"])
def test_tls_options_may_be_spelled_as_redis_py_or_as_celery_does(spelled: str) -> None:
    url = f"rediss://:pw@127.0.0.1:6380/1?ssl_cert_reqs={spelled}&ssl_check_hostname=false"
    with connect(url, socket_timeout_seconds=1) as client:
        assert client.connection_pool.connection_kwargs["ssl_cert_reqs"] == "none"
    assert connect_async(url, socket_timeout_seconds=1).connection_pool.connection_kwargs["ssl_cert_reqs"] == "none"
    # And Celery reads it as it is.
    assert KombuConnection(url).ssl["ssl_cert_reqs"] == ssl.CERT_NONE


def test_a_server_without_a_connection_left_has_the_mend_for_that(tmp_path: Path) -> None:
    with LocalRedis(tmp_path) as server, Redis.from_url(server.url) as one:
        one.config_set("maxclients", 1)
        said = _refusal(server.url)
    assert "maxclients" in said
    assert "themes up" not in said


@pytest.mark.parametrize("url", ["redis://localhost:1/0", "rediss://localhost:1/0"])
def test_the_asyncio_client_sends_the_bytes_that_redis_py_would(url: str) -> None:
    kind = connect_async(url, socket_timeout_seconds=1).connection_pool.connection_class
    ours, theirs = kind(), kind.__mro__[2]()
    for command in [
        ("SET", "k", b"\x00\xff", "px", 5),
        ("EVALSHA", "d", 1, "k", 1.5, 1e22, -(2**70), float("inf"), "Malmö", b"", ""),
        ("SCRIPT LOAD", "return 1"),
        (b"CLIENT SETNAME", "x"),
        ("SET", "k", bytearray(b"v"), memoryview(b"w")),
        ("SET", "k", signal.SIGTERM),
        ("SET", "k", b"v" * 100_000),
    ]:
        assert b"".join(ours.pack_command(*command)) == b"".join(theirs.pack_command(*command))
    for wrong in (True, None, ["v"]):
        with pytest.raises(DataError):
            ours.pack_command("SET", "k", wrong)
    with pytest.raises(UnicodeEncodeError):
        ours.pack_command("SET", "k", "\ud800")
    assert len(ours.pack_command("SET", "k", b"v" * 100_000)) == 1, "it is packed in C"


async def test_a_command_that_the_socket_does_not_take_at_once_is_sent_whole_or_given_up_in_time(
    tmp_path: Path,
) -> None:
    large = b"v" * 32_000_000
    with LocalRedis(tmp_path) as server:
        patient = connect_async(server.url, socket_timeout_seconds=180)
        await patient.set("k", large)
        assert await patient.strlen("k") == len(large)
        brief = connect_async(server.url, socket_timeout_seconds=1)
        assert server.pid
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(redis_errors.TimeoutError):
                await brief.set("k", large)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert await patient.set("k", "v")
        await brief.aclose()
        await patient.aclose()


async def test_a_command_over_a_connection_that_was_cut_is_sent_again(redis_url: str, redis: Redis) -> None:
    client = connect_async(redis_url, socket_timeout_seconds=30)
    for _ in range(3):
        assert await client.incr("k")
        redis.client_kill_filter(_type="normal", skipme=True)
    assert await client.get("k") == b"3"
    await client.aclose()
