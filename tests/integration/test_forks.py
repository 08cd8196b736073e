"""What a role that is forked has of its parent, and what it has not."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import psutil
import pytest

from scripts.lib.forks import may_fork
from scripts.lib.processes import program, spawn
from tests.support.forks import Forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")

#: A program that starts another, by a fork, after it has done what must not reach it.
PARENT = """
import atexit, json, os, signal, sys, threading
from pathlib import Path
sys.path.insert(0, {folder!r})
import child
from scripts.lib.processes import program, spawn

kept = open({folder!r} + "/kept", "w")
os.environ["ONLY_OF_THE_PARENT"] = "1"
os.set_inheritable(kept.fileno(), True)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda *_: print("the parent's handler", flush=True))
print("not yet written", end="")
process = spawn(program("child", "--name", "x"), env={{"GIVEN": "yes"}}, log=Path({folder!r}) / "log", fork=True)
process.wait()
print("ended", process.returncode)
"""
CHILD = """
import atexit, json, os, signal, sys, threading
from pathlib import Path

IMPORTED_BY = os.getpid()

def main():
    atexit.register(lambda: print("at exit"))
    threading.Thread(target=lambda: print("a thread")).start()
    files = [str(path.resolve()) for path in Path("/proc/self/fd").iterdir()]
    handlers = [str(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGHUP)]
    print(json.dumps({
        "forked": IMPORTED_BY != os.getpid(), "argv": sys.argv[1:], "given": os.environ.get("GIVEN"),
        "files": files, "handlers": handlers, "leads": os.getsid(0) == os.getpid(),
        "line": Path("/proc/self/cmdline").read_bytes().rstrip(b"\\0").decode().split("\\0"),
    }))
    sys.exit("its last words")
"""


def test_a_forked_program_is_as_one_that_is_executed(tmp_path: Path, forks: Forks) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "parent.py").write_text(PARENT.format(folder=str(tmp_path)))
    parent = forks.script(str(tmp_path / "parent.py"), env={})
    said, _ = parent.communicate(180)
    assert said == b"not yet writtenended 1\n"
    lines = (tmp_path / "log").read_text().splitlines()
    (found,) = [json.loads(line) for line in lines if line.startswith("{")]
    assert found["forked"]
    assert found["argv"] == ["--name", "x"]
    assert found["given"] == "yes"
    assert found["line"] == ["child", "--name", "x"]
    assert found["leads"]
    assert str(tmp_path / "kept") not in found["files"]
    assert found["handlers"] == [str(signal.SIG_DFL)] * 2
    assert sorted(lines)[:3] == ["a thread", "at exit", "its last words"]


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from config.settings import load
from scripts.lib import stack
from scripts.lib.processes import Interrupted, interruptible, spawn, stop

def spawn_and_be_told_to_end(*arguments, **options):
    child = spawn(*arguments, **(options | {{"fork": {fork}}}))
    os.kill(os.getpid(), signal.SIGTERM)
    return child

stack.spawn = spawn_and_be_told_to_end
made = stack.Stack(load(), "redis://127.0.0.1:1", Path({folder!r}), {{}})
try:
    with interruptible():
        made.start("sandbox", "sandbox-llm", "--port", "0")
except Interrupted:
    (child,) = made.others.values()
    print(child.poll(), stop([child], seconds=120))
"""


@pytest.mark.parametrize("fork", [True, False], ids=["forked", "executed"])
def test_a_role_that_began_before_a_signal_is_recorded_and_ends_by_the_next(
    tmp_path: Path, forks: Forks, fork: bool
) -> None:
    (tmp_path / "parent.py").write_text(INTERRUPTED.format(folder=str(tmp_path), fork=fork))
    parent = forks.script(str(tmp_path / "parent.py"), env={})
    said, _ = parent.communicate(180)
    assert said == b"None True\n"


def test_a_process_that_runs_threads_forks_nothing(tmp_path: Path) -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        assert not may_fork()
        process = spawn(program("platform"), env=dict(os.environ), log=tmp_path / "log", fork=True)
        assert process.wait() == 0
    finally:
        over.set()
        thread.join()
    assert "Linux" in (tmp_path / "log").read_text()


def test_a_forked_role_ends_with_its_parent(tmp_path: Path, forks: Forks) -> None:
    (tmp_path / "child.py").write_text("import time\ndef main():\n    print('up', flush=True)\n    time.sleep(600)\n")
    (tmp_path / "parent.py").write_text(PARENT.format(folder=str(tmp_path)))
    parent = forks.script(str(tmp_path / "parent.py"), env={})
    while not (tmp_path / "log").exists() or "up" not in (tmp_path / "log").read_text():
        assert parent.poll() is None
    (child,) = psutil.Process(parent.pid).children()
    parent.kill()
    child.wait(180)
    parent.close()
