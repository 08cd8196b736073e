"""Starts `themes` without half a second of importing: forked from a process that has imported all verbs.

That process has started nothing and has one thread. A child gets its own arguments, environment, folder, output and
session, and runs `scripts.main.main` as `themes up` runs it in what it forks (`scripts.lib.forks`), or Celery's command
line as `python -m celery` does. `Forks` starts it and talks to it over a socket: a message with the child's three
descriptors, an answer with its id, another with its exit code.

A test's own file can be run by a child too, as `python FILE` does.
"""

import array
import contextlib
import copy
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

from scripts.lib.forks import THEMES, become, run_main
from scripts.lib.processes import program
from tests.support.hosts import Host, become_host

MAX_MESSAGE = 1 << 20
#: Modules that commands and Celery's processes import late. Not `workers.app`, which reads the settings.
LATE = (
    "aiohttp.web",
    "aiosqlite",
    "celery.apps.worker",
    "celery.bin.celery",  # and with it Flower's command
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "flower.app",
    "kombu.transport.redis",
    "pytest",
    "tasks.queue.app",
    "workers.dashboard.server",
    "workers.llm.generator",
    "workers.local.job",
    "workers.pipeline.prompts",
    "workers.results.consumer",
    "workers.results.sweeper",
    "workers.sandbox.server",
    "workers.worker.remote",
    "workers.worker.runtime",
    "workers.worker.tuning",
)
#: Celery's command line with our app.
CELERY = ("celery", "-A", "workers.app")


class Forked:
    """A child, as `subprocess.Popen` shows one."""

    def __init__(self, connection: socket.socket, arguments: Sequence[str]) -> None:
        self._connection = connection
        self._words = connection.makefile("r")
        self.args = list(arguments)
        self.pid = int(self._words.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, or None while the child lives."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code.

        Raises:
            TimeoutExpired: the child lives.
        """
        if self.returncode is None:
            ready = select.poll()  # `select` takes no descriptor above 1,023
            ready.register(self._connection, select.POLLIN)
            if not ready.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self._ended()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal while the child lives."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _ended(self) -> None:
        self.returncode = int(self._words.readline())
        self._words.close()
        self._connection.close()


class Script(Forked):
    """A child whose input and output are pipes of ours."""

    def __init__(self, child: Forked, stdin: int, stdout: int) -> None:
        self.__dict__.update(child.__dict__)
        self.stdin = os.fdopen(stdin, "wb")
        self.stdout = os.fdopen(stdout, "rb")

    def communicate(self, timeout: float) -> tuple[bytes, None]:
        """What it has written when it has ended: a few bytes, as many as a pipe holds."""
        self.wait(timeout)
        with self.stdin, self.stdout:
            return self.stdout.read(), None

    def close(self) -> None:
        """End it, if it lives, whatever it does."""
        self.kill()
        self.wait()
        self.stdin.close()
        self.stdout.close()


class Piped(Forked):
    """A child whose streams are pipes of ours, as text."""

    stdin: IO[str]
    stdout: IO[str]
    stderr: IO[str]

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Close its input, wait for its end, and return what it has said since it was last read."""
        said = {}

        def read(name: str, stream: IO[str]) -> None:
            with stream:
                said[name] = stream.read()

        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        streams = {"stdout": self.stdout, "stderr": self.stderr}
        readers = [threading.Thread(target=read, args=item, daemon=True) for item in streams.items()]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return said["stdout"], said["stderr"]


class Forks:
    """The process that forks, and how to ask it. Use as a context manager."""

    def __init__(self) -> None:
        #: The network namespace and name of the host that children run on; empty: this one.
        self._host: tuple[str, ...] = ()
        self._folder = tempfile.TemporaryDirectory(prefix="forks-")
        #: Where a message asks for a child.
        self.socket = f"{self._folder.name}/s"
        env = {key: value for key, value in os.environ.items() if not key.startswith(("THEMES_", "OPENAI_"))}
        command = [sys.executable, "-m", "tests.support.forks", self.socket]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=Path(__file__).parents[2]
        )
        assert self._process.stdout
        assert self._process.stdout.readline() == b"ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        self._folder.cleanup()

    def on(self, host: Host) -> Self:
        """The same, for children that run on another host."""
        other = copy.copy(self)
        other._host = (host.namespace, host.name)
        return other

    def start(
        self,
        *arguments: str,
        env: Mapping[str, str],
        stdin: IO[Any] | int,
        stdout: IO[Any] | int,
        stderr: IO[Any] | int,
        module: str = THEMES,
    ) -> Forked:
        """Start `themes` (or the `module` celery) with these arguments, in a session of its own."""
        return Forked(self._order(arguments, env, module, (stdin, stdout, stderr)), arguments)

    def pipe(self, *arguments: str, env: Mapping[str, str]) -> Piped:
        """Start `themes` with pipes."""
        (its_in, stdin), (stdout, its_out), (stderr, its_err) = (os.pipe() for _ in range(3))
        child = Piped(self._order(arguments, env, THEMES, (its_in, its_out, its_err)), arguments)
        child.stdin, child.stdout, child.stderr = os.fdopen(stdin, "w"), os.fdopen(stdout), os.fdopen(stderr)
        for handle in (its_in, its_out, its_err):
            os.close(handle)
        return child

    def _order(
        self, arguments: Sequence[str], env: Mapping[str, str], module: str, streams: Sequence[IO[Any] | int]
    ) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.socket)
        place = {"module": module, "cwd": str(Path.cwd()), "host": self._host}
        order = json.dumps({"arguments": arguments, "env": dict(env), **place}).encode()
        handles = array.array("i", [one if isinstance(one, int) else one.fileno() for one in streams])
        connection.sendmsg([len(order).to_bytes(4, "big") + order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, handles)])
        return connection

    def script(self, file: str, *arguments: object, env: Mapping[str, str]) -> Script:
        """Run a Python file, as a program of its own."""
        (given, stdin), (stdout, written) = os.pipe(), os.pipe()
        child = self.start(*map(str, arguments), env=env, stdin=given, stdout=written, stderr=2, module=file)
        for ours in (given, written):
            os.close(ours)
        return Script(child, stdin, stdout)

    def run(
        self, *arguments: str, env: Mapping[str, str], stdin: str | None, timeout: float, module: str = THEMES
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write((stdin or "").encode())
            given.seek(0)
            child = self.start(*arguments, env=env, stdin=given, stdout=out, stderr=err, module=module)
            try:
                code = child.wait(timeout)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                raise
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode("utf-8", "replace").replace("\r\n", "\n"))
        return subprocess.CompletedProcess(arguments, code, *said)


def _serve(path: str) -> None:
    """Fork a child for every message until the input ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    living: dict[int, socket.socket] = {}
    os.write(1, b"ready\n")
    while True:
        ready, _, _ = select.select([0, listener, woken], [], [])
        if 0 in ready:
            for pid in living:
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        if woken in ready:
            os.read(woken, 1 << 16)
            _reap(living)
        if listener not in ready:
            continue
        connection, _ = listener.accept()
        data, handles, _, _ = socket.recv_fds(connection, MAX_MESSAGE, 3)
        while len(data) < 4 + int.from_bytes(data[:4], "big"):
            data += connection.recv(MAX_MESSAGE)
        order = json.loads(data[4:])
        pid = os.fork()
        if not pid:
            os.setsid()
            for number, handle in enumerate(handles):
                os.dup2(handle, number)
            os.chdir(order["cwd"])
            first = partial(become_host, *order["host"]) if order["host"] else int
            become(program(order["module"], *order["arguments"]), order["env"], first=first, run=_run)
        for handle in handles:
            os.close(handle)
        living[pid] = connection
        connection.sendall(f"{pid}\n".encode())


def _reap(living: dict[int, socket.socket]) -> None:
    while living:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with living.pop(pid) as connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _run(module: str) -> None:
    if module == THEMES:
        # It is imported already, and `runpy` would run it a second time.
        run_main(module)
    elif module.endswith(".py"):
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def import_everything() -> None:
    """Import what any program of ours imports, and leave it out of garbage collection."""
    from config.settings import load
    from scripts.main import VERBS

    for module in (*(f"scripts.{verb}".replace("-", "_") for verb in VERBS), *LATE):
        importlib.import_module(module)
    load(env={})  # reads the settings file, for all
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    import_everything()
    _serve(sys.argv[1])
