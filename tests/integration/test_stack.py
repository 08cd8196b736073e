"""The processes of `themes up`: what is waited for, and what is said meanwhile."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from redis import Redis

from config.settings import Settings
from scripts.lib import stack
from scripts.lib.stack import Stack
from tasks import keys
from tasks.errors import ThemesError


@pytest.fixture
def made(settings_for: Callable[..., Settings], redis_url: str, tmp_path: Path) -> Stack:
    """A stack of which nothing is started."""
    return Stack(settings_for(), redis_url, tmp_path, {})


def _child(code: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)


def test_slow_workers_are_waited_for_while_they_live_and_that_is_said(
    made: Stack, redis: Redis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stack, "SAY_SECONDS", 0.2)
    said: list[str] = []
    is_said_twice = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            is_said_twice.set()

    monkeypatch.setattr(stack, "say", say)

    def start() -> None:
        assert is_said_twice.wait(180)
        redis.hset(keys.worker("worker1@h"), mapping={"lanes": 1})
        redis.expire(keys.worker("worker1@h"), 60)
        redis.zadd(keys.WORKERS, {"worker1@h": 1})

    made.workers["worker1"] = child = _child("input()")
    starting = threading.Thread(target=start)
    starting.start()
    made.wait_until_ready()
    starting.join()
    child.kill()
    child.communicate()
    assert len(said) >= 2
    assert all("still starting after" in text and "worker1" in text for text in said)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit(3)", "worker1 ended with code 3"),
        ("import os; os.kill(os.getpid(), 9)", r"worker1 was ended by a signal \(Killed\)"),
    ],
)
def test_a_worker_that_ends_is_not_waited_for(made: Stack, code: str, said: str) -> None:
    made.workers["worker1"] = child = _child(code)
    with pytest.raises(ThemesError, match=said):
        made.wait_until_ready()
    child.communicate()
