"""Another program of ours by a fork of this process: what is imported here need not be imported again.

A child begins in milliseconds instead of a second of CPU, and shares the memory of what was imported with its parent.
It forgets its parent's descriptors, signal handlers and environment, and its command line shows what it is. Where a
fork is unsafe (macOS, a process that runs threads) the same command is executed instead.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from scripts.lib.interrupts import leave_at_once

THEMES: Final = "scripts.main"
#: What the Celery process of a worker imports; not `workers.app`, which reads the settings.
WORKER: Final = (
    "celery.apps.worker",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "kombu.transport.redis",
    "scripts.celery_worker",
    "scripts.worker",
    "tasks.queue.task",
    "workers.worker.remote",
    "workers.worker.runtime",
    "workers.worker.transport",
)
#: What the consumer and the dashboard import.
DATABASE: Final = (
    "workers.results.consumer",
    "workers.results.sweeper",
)
#: Numbers of the fields of /proc/PID/stat behind the name that say where in memory the arguments are.
_ARGUMENTS: Final = slice(45, 47)


def may_fork() -> bool:
    return sys.platform == "linux" and len(list(Path("/proc/self/task").iterdir())) == 1


def preload(modules: Sequence[str]) -> None:
    """Import what children will need, where they are forked."""
    if may_fork():
        for module in modules:
            importlib.import_module(module)


def run_main(module: str) -> None:
    """Run a module's `main` as `python -m` does."""
    program = importlib.import_module(module)
    leave_at_once()
    program.main()


def become(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    first: Callable[[], object] = int,
    run: Callable[[str], object] = run_main,
) -> NoReturn:
    """In the child, with its own streams: do `first`, then be the program of `command`; `run` runs a module by name."""
    code: Any = 1
    module, *arguments = command[3:]
    try:
        _forget_the_parent()
        first()
        _show(["themes" if module == THEMES else module, *arguments])
        os.environ.clear()
        os.environ.update(env)
        sys.argv = [module, *arguments]
        run(module)
        code = 0
    except SystemExit as exc:
        code = exc.code
        if isinstance(code, str):
            sys.stderr.write(f"{code}\n")
    except BaseException:  # noqa: BLE001  # a child must never return into the program that it was forked from
        traceback.print_exc()
    # What an interpreter does at its end, as `multiprocessing` does it in its children.
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001
        atexit._run_exitfuncs()  # noqa: SLF001
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _forget_the_parent() -> None:
    """Its descriptors, signal handlers and duties; the streams are new ones on the descriptors 0, 1 and 2."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDWR)
    # Not closed: where the parent has an object of one, it would close the next file of that number.
    for handle in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if handle > 2 and handle != nothing:  # noqa: PLR2004  # the streams
            with contextlib.suppress(OSError):
                os.fstat(handle)
                os.dup2(nothing, handle, inheritable=False)
    os.close(nothing)
    sys.unraisablehook = sys.__unraisablehook__
    gc.freeze()
    gc.enable()
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", buffering=-1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115


def _show(arguments: Sequence[str]) -> None:
    """Put these arguments over those of the parent, where `ps` reads them; they end where its own ended."""
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = map(int, fields[_ARGUMENTS])
    text = "\0".join(arguments).encode()[: max(0, end - start - 1)]
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)
