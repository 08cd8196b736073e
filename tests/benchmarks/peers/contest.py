"""The contestants and their processes."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from tests.benchmarks.environments import environment
from tests.benchmarks.full_prompts import body_of, prompts_about
from tests.benchmarks.peers.driver import PLACE, Terms
from tests.benchmarks.whole import posts


class CannotError(Exception):
    """A contestant did not do what was asked, with the reason."""


_HERE: Final = Path(__file__).parent
_ROOT: Final = _HERE.parents[2]
#: Seconds that opening a contestant, and an order may take.
OPEN_SECONDS, ORDER_SECONDS = 90.0, 120.0


@dataclass(frozen=True)
class Contestant:
    """One library, as `ask_NAME.py` uses it; what it has by its documentation is tried where it is said to have it."""

    name: str
    #: Has it checked its answers against the schema?
    validates: bool
    #: Where it keeps answers for the next process.
    cache: Literal["redis", "folder", ""] = ""
    #: How it keeps to requests a minute: evenly, out of a bucket that begins full, or by the minutes of the clock.
    limit: Literal["pace", "bucket", "minute", ""] = ""
    is_ours: bool = False

    @cached_property
    def python(self) -> str:
        """The interpreter of its environment, which is made when there is none."""
        return sys.executable if self.is_ours else _environment(self.name)


BARE: Final = Contestant("bare", validates=False, is_ours=True)
OURS: Final = Contestant("ours", validates=True, cache="redis", limit="pace", is_ours=True)
ALL: Final = (
    BARE,
    OURS,
    Contestant("openai", validates=True),
    Contestant("litellm", validates=True, cache="redis", limit="minute"),
    Contestant("langchain", validates=True, cache="redis", limit="pace"),
    Contestant("instructor", validates=True, cache="folder"),
    Contestant("lm_deluge", validates=False, cache="folder", limit="bucket"),
    Contestant("flexllm", validates=False, cache="folder", limit="pace"),
    Contestant("curator", validates=False, cache="folder", limit="pace"),
)


def _environment(name: str) -> str:
    try:
        return str(environment(_HERE / f"{name}.txt"))
    except RuntimeError as exc:
        raise CannotError(str(exc)) from exc


class Running:
    """A contestant's process, told one order after the other."""

    def __init__(self, contestant: Contestant, terms: Terms, folder: Path) -> None:
        self.contestant = contestant
        folder.mkdir(parents=True)
        self._log = folder / "log"
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        # What a library writes in the user's home would be found by the next process.
        env |= {"HOME": str(folder), "TMPDIR": str(folder), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        if contestant.is_ours:
            env["PYTHONPATH"] = str(_ROOT)
        command = [contestant.python, str(_HERE / "driver.py"), contestant.name, json.dumps(terms._asdict())]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=env, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def begin(self, **order: object) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()

    def figures(self, seconds: float = ORDER_SECONDS) -> dict[str, Any]:
        """What the contestant says next, all of whose calls were answered; first comes what its warming up took."""
        assert self.process.stdout
        late = threading.Timer(seconds, self.process.kill)
        late.start()
        line = self.process.stdout.readline()
        late.cancel()
        if not line:
            code = self.process.wait()
            raise CannotError(self._last_words() if code != -signal.SIGKILL else f"not done in {seconds:.0f} s")
        said: dict[str, Any] = json.loads(line)
        if said["failed"]:
            raise CannotError(f"{said['failed']} calls failed: {said['why']}")
        return said

    def carry_out(self, **order: object) -> dict[str, Any]:
        self.begin(**order)
        return self.figures()

    def kill(self) -> None:
        """End it in the midst of its order, which it must still be carrying out."""
        if self.process.poll() is not None:
            raise CannotError(f"ended: {self._last_words()}")
        self.process.kill()

    def _last_words(self) -> str:
        words = self._log.read_text(errors="replace").strip().splitlines()
        return words[-1][:300] if words else f"exit {self.process.returncode}"

    def end(self) -> None:
        """It goes by itself, and writes what it has to write."""
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def close(self, seconds: float = 10.0) -> None:
        self.end()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


@contextmanager
def may_fail(contestant: Contestant) -> Iterator[None]:
    """A peer that cannot is said and left out; when we cannot, the test fails."""
    try:
        yield
    except CannotError as error:
        if contestant.is_ours:
            raise
        print(f"{contestant.name}: cannot: {error}", flush=True)


@dataclass
class Ring:
    """Where contestants meet: one server, one Redis, one folder."""

    server: str
    redis: str
    folder: Path
    _opened: int = 0

    def terms(self, contestant: Contestant, in_flight: int, *, cached: bool, per_minute: int) -> Terms:
        bodies = self.folder / "bodies.json"
        if not bodies.exists():
            bodies.write_text(f"[{','.join(body_of(prompt).decode() for prompt in prompts_about(PLACE))}]")
        needs_redis = contestant is OURS or per_minute or (cached and contestant.cache == "redis")
        kept = str(self.folder / f"cache-{contestant.name}") if cached and contestant.cache == "folder" else ""
        return Terms(self.server, in_flight, str(bodies), self.redis if needs_redis else "", kept, per_minute)

    @contextmanager
    def opened(
        self, some: Iterable[Contestant], in_flight: int = 64, *, cached: bool = False, per_minute: int = 0
    ) -> Iterator[dict[Running, dict[str, Any]]]:
        """Processes that are warm, each with the figures of its warming up."""
        with ExitStack() as stack:
            started, warm = [], {}
            for one in some:
                with may_fail(one):
                    self._opened += 1
                    terms = self.terms(one, in_flight, cached=cached, per_minute=per_minute)
                    started.append(Running(one, terms, self.folder / f"{self._opened}-{one.name}"))
                    stack.callback(started[-1].close)
            for running in started:
                with may_fail(running.contestant):
                    warm[running] = running.figures(OPEN_SECONDS)
            yield warm
            for running in warm:
                running.end()

    def posted(self) -> int:
        """Requests that the server has had until now."""
        return posts(self.server)
