"""The private Redis among killed, wedged and unlucky neighbours; the calm cases are in test_redis_connection.py."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from redis import Redis

from scripts.lib import local_redis
from scripts.lib.local_redis import LocalRedis
from tasks.connection import ADDRESS_FILE, private_url
from tasks.errors import ConfigError, RedisUnavailableError

_OWNER = """
import sys, time
from pathlib import Path
from scripts.lib.local_redis import LocalRedis
with LocalRedis(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""


@contextmanager
def _owner(state_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    """Another process with a private Redis, and that Redis."""
    with subprocess.Popen([sys.executable, "-c", _OWNER, str(state_dir)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        try:
            yield owner, psutil.Process(int(owner.stdout.readline()))
        finally:
            owner.kill()


def _has_ended(process: psutil.Process) -> bool:
    """Whether it ended; its new parent may take its time to notice."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_start_right_after_a_kill_does_not_adopt_the_dying_server(tmp_path: Path) -> None:
    for number in range(3):
        with _owner(tmp_path) as (owner, server):
            with Redis.from_url(private_url(tmp_path) or "") as client:
                assert client.incr("kept") == number + 1
            os.kill(owner.pid, signal.SIGKILL)
            owner.wait(180)
            with LocalRedis(tmp_path) as again, Redis.from_url(again.url) as client:
                assert again.pid not in {None, server.pid}
                assert _has_ended(server)
                assert client.get("kept") == str(number + 1).encode()


def test_a_start_beside_an_owner_whose_redis_was_killed_names_that_owner(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local_redis, "WAIT_SECONDS", 1.0)
    with _owner(tmp_path) as (owner, server):
        server.kill()
        with pytest.raises(RedisUnavailableError, match=f"process {owner.pid} holds .* does not answer"):
            LocalRedis(tmp_path).__enter__()


def test_two_starts_at_once_make_one_server(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _OWNER, str(tmp_path)]
    starts = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    try:
        said = [start.stdout.readline().decode().strip() for start in starts if start.stdout]
    finally:
        for start in starts:
            start.kill()
            start.communicate()
    assert said.count("None") == 2


def test_a_port_that_was_taken_in_between_is_left_for_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], local_redis._free_port()])
        monkeypatch.setattr(local_redis, "_free_port", lambda: next(ports))
        with LocalRedis(tmp_path) as server, Redis.from_url(server.url) as client:
            assert client.ping()
            assert f":{taken.getsockname()[1]}/" not in server.url


def test_a_broken_append_only_file_is_named_in_the_refusal_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "appendonly.aof").write_bytes(b"rubbish\r\n" * 9)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(RedisUnavailableError, match="(?i)does not start: .*append only file.*more in"):
        LocalRedis(tmp_path, "bundled").__enter__()
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    assert not (tmp_path / ADDRESS_FILE).exists()


def test_its_data_can_be_read_by_its_owner_only_even_in_a_folder_made_earlier(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir(mode=0o755)
    with LocalRedis(tmp_path):
        assert stat.S_IMODE((tmp_path / "redis").stat().st_mode) == 0o700


def test_it_is_out_of_reach_of_a_terminal_s_ctrl_c(tmp_path: Path) -> None:
    with LocalRedis(tmp_path) as server:
        assert server.pid
        assert os.getpgid(server.pid) != os.getpgid(0)
        assert os.getsid(server.pid) != os.getsid(0)


def test_it_listens_on_loopback_only_and_asks_for_its_password(tmp_path: Path) -> None:
    with LocalRedis(tmp_path) as server:
        assert server.pid
        listening = [c for c in psutil.Process(server.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
        with Redis.from_url(server.url) as client:
            wanted = {"appendonly": "yes", "maxmemory-policy": "volatile-lru", "save": "", "databases": "16"}
            assert {key: client.config_get(key)[key] for key in wanted} == wanted
            assert client.config_get("requirepass")["requirepass"]


def test_a_state_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="state_dir: .*cannot be written"):
        LocalRedis(tmp_path / "file").__enter__()


@pytest.mark.parametrize("rubbish", [b"", b"\xff\xfe\x00", b"no url", b"redis://[::1"])
def test_rubbish_in_the_address_file_is_as_good_as_none(rubbish: bytes, tmp_path: Path) -> None:
    (tmp_path / ADDRESS_FILE).write_bytes(rubbish)
    assert private_url(tmp_path) is None
    with LocalRedis(tmp_path) as server:
        assert private_url(tmp_path) == server.url
    assert not (tmp_path / ADDRESS_FILE).exists()
