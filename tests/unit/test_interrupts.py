"""No signal is lost, whatever Python does when it comes."""

import subprocess
import sys

import pytest

#: Sends us Ctrl-C where an exception goes nowhere: inside a finalizer.
DEAF = """
import os, signal, time
class Deaf:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1_000):
            pass
"""
VERB = """
from scripts.lib.interrupts import leave_at_once, raise_from_now_on
leave_at_once()
raise_from_now_on()
try:
    Deaf()
    time.sleep(60)
except KeyboardInterrupt:
    print("heard", end="")
"""
STACK = """
from scripts.lib.processes import Interrupted, interruptible
try:
    with interruptible():
        Deaf()
        time.sleep(60)
except Interrupted:
    print("heard", end="")
"""
IMPORTS = """
from scripts.lib.interrupts import leave_at_once
leave_at_once()
try:
    Deaf()
    time.sleep(60)
finally:
    print("tidied", end="")
"""
OTHERS = """
from scripts.lib.interrupts import raise_again_when_lost
class Broken:
    def __del__(self):
        raise ValueError("shown as ever")
forget = raise_again_when_lost(KeyboardInterrupt)
Broken()
forget()
try:
    Deaf()
    print("lost, as Python does", end="")
except KeyboardInterrupt:
    print("heard", end="")
"""


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", DEAF + code], capture_output=True, text=True, timeout=180, check=False)


@pytest.mark.parametrize("code", [VERB, STACK], ids=["a verb", "a stack"])
def test_a_signal_that_comes_inside_a_finalizer_is_heard(code: str) -> None:
    said = _run(code)
    assert (said.returncode, said.stdout, said.stderr) == (0, "heard", "")


def test_while_modules_are_imported_ctrl_c_ends_the_process_without_a_word() -> None:
    said = _run(IMPORTS)
    assert (said.returncode, said.stdout, said.stderr) == (130, "", "")


def test_other_errors_of_finalizers_are_shown_as_ever_and_the_watch_can_be_ended() -> None:
    said = _run(OTHERS)
    assert said.returncode == 0
    assert "ValueError: shown as ever" in said.stderr
    assert said.stdout == "lost, as Python does"
