"""Child processes that never outlive their parent.

A child has its own session, so that a terminal's Ctrl-C reaches the parent alone; on Linux the kernel sends it SIGTERM
when the parent dies (prctl PR_SET_PDEATHSIG).
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any, Final

import psutil

from scripts.lib import forks
from scripts.lib.interrupts import raise_again_when_lost

#: Seconds that the kernel may take to end a killed process.
KILL_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.02
#: Set by the second signal: nothing is waited for any more.
_hurry: Final = threading.Event()
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None
_ENDINGS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold back signals to end within the body, so that a child that is made is recorded. For the main thread."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_ENDINGS, signal.SIGALRM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent(parent: int) -> None:
    """In the child, between fork and exec; `parent` is the process id of the forking process."""
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, (*_ENDINGS, signal.SIGALRM)
    )  # an `undisturbed` parent's mask is inherited
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            # It died before the kernel knew what we want: no signal will come.
            os.kill(os.getpid(), signal.SIGTERM)


def program(module: str, *arguments: str) -> list[str]:
    """The command line of a module with a `main`; -P: nothing is imported from the current directory."""
    return [sys.executable, "-P", "-m", module, *arguments]


def themes(*arguments: str) -> list[str]:
    """The command line of another `themes` of this installation."""
    return program("scripts.main", *arguments)


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    stdout: int | IO[Any] | None = None,
    fork: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a child; its output goes to the end of the file `log`, or where ours goes.

    With `fork`, a program of ours is forked from this process where that is safe, see `scripts.lib.forks`. Call it from
    the main thread: the kernel ties a child's life to the thread that made it.
    """
    environment = {**os.environ, **(env or {})}
    first: Callable[[], object] = partial(die_with_parent, os.getpid())
    if fork and forks.may_fork():
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # What runs between fork and exec never comes to the exec.
        first = partial(forks.become, command, environment, first=first)
    with contextlib.ExitStack() as stack:
        words: IO[Any] | None = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            words = stack.enter_context(log.open("ab"))
        return subprocess.Popen(  # noqa: S603  # our own commands
            list(command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout if stdout is not None else words,
            stderr=words,
            start_new_session=True,
            preexec_fn=first,  # noqa: PLW1509  # our parents run one thread
        )


def stop(processes: Sequence[subprocess.Popen[bytes]], *, seconds: float) -> bool:
    """SIGTERM to all, SIGKILL to the rest after `seconds` or a second signal; True when none had to be killed."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + seconds
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline and not _hurry.is_set():
        time.sleep(POLL_SECONDS)
    left = [process for process in processes if process.poll() is None]
    for process in left:
        _kill_tree(process)
    return not left


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with all that it has started: a supervisor that must be killed leaves nothing behind."""
    with contextlib.suppress(psutil.NoSuchProcess):
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(children, timeout=KILL_SECONDS)
    process.wait()


def lock_with_pid(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return True


class Interrupted(BaseException):  # as KeyboardInterrupt, it is no error
    """SIGTERM, SIGHUP or Ctrl-C arrived."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within the body, SIGTERM, SIGHUP and SIGINT raise `Interrupted` once; a second one makes `stop` kill at once."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for each in _ENDINGS:
            signal.signal(each, hurry)
        raise Interrupted(signal.Signals(number).name)

    def hurry(_number: int, _frame: FrameType | None) -> None:
        _hurry.set()

    before = {number: signal.signal(number, interrupt) for number in _ENDINGS}
    forget = raise_again_when_lost(Interrupted)
    try:
        yield
    finally:
        forget()
        for number, handler in before.items():
            signal.signal(number, handler)
