"""Keeps one Celery worker process alive.

On Redis it may end when Redis restarts or a message is garbage, and may live without consuming.
"""

import logging
import signal
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

import psutil
from redis import Redis, RedisError

from config.settings import SUPERVISED, Settings
from scripts.lib.processes import program, spawn, undisturbed
from tasks import keys
from tasks import worker_reports as fleet
from tasks.errors import ConfigError
from tasks.queue.leases import release
from tasks.readings import amounts, replies_of
from workers.process.signals import on_hangup
from workers.results.journal import replay_journals
from workers.worker.liveness import EX_WEDGED, LivenessDetector, waiting_messages

log = logging.getLogger("themes.supervisor")

#: Seconds below which the life of a Celery process counts as a failed start.
FAILED_START_SECONDS: Final = 5.0
#: Seconds that a process may take until its first heartbeat before it counts as one that has stopped.
START_SECONDS: Final = 60.0
#: Failed starts in a row after which the supervisor gives up.
MAX_FAILED_STARTS: Final = 5
#: Exit code of a process whose configuration is wrong: starting it again would not help.
EX_CONFIG: Final = 2
MAX_BACKOFF_SECONDS: Final = 30.0
WATCH_SECONDS: Final = 0.25
#: Seconds beyond the grace time that a stopping process may take before it is killed.
STOP_MARGIN_SECONDS: Final = 1.0


def backoff_seconds(failed_starts: int) -> float:
    return min(MAX_BACKOFF_SECONDS, 0.5 * float(2**failed_starts)) if failed_starts else 0.0


@dataclass
class Supervisor:
    settings: Settings
    redis: Redis
    broker: Redis
    name: str
    restarts: int = 0
    #: Of these, how many because the process was alive and consumed nothing.
    wedged: int = 0
    signals: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _process_token: str = ""
    #: When the process was started, in monotonic seconds.
    _began: float = 0.0
    _liveness: LivenessDetector = field(init=False)

    def __post_init__(self) -> None:
        self._liveness = LivenessDetector(self.settings.work.wedged_after_seconds)

    def stopping(self) -> bool:
        return self.signals > 0

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        on_hangup(self._reload)
        failed_starts = 0
        while not self.stopping():
            began = time.monotonic()
            code = self._one_life()
            if self.stopping():
                break
            if code == EX_CONFIG:
                return code
            failed_starts = failed_starts + 1 if time.monotonic() - began < FAILED_START_SECONDS else 0
            if failed_starts >= MAX_FAILED_STARTS:
                log.error(
                    "action=give_up the worker process died %d times at once, last with code %d", failed_starts, code
                )
                return 1
            self.restarts += 1
            self.wedged += code == EX_WEDGED
            delay = backoff_seconds(failed_starts)
            counts = code, self.restarts, self.wedged, delay
            log.warning("action=restart exit_code=%d restarts=%d wedged=%d delay_s=%.1f", *counts)
            self._wait(delay)
        return 0

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.stopping() and time.monotonic() < until:
            time.sleep(min(WATCH_SECONDS, seconds))

    def _one_life(self) -> int:
        self._process_token = uuid.uuid4().hex[:12]
        environment = dict(zip(SUPERVISED, (str(self.restarts), str(self.wedged), self._process_token), strict=True))
        with undisturbed():
            self._process = process = spawn(program("scripts.celery_worker", self.name), env=environment, fork=True)
        self._liveness.since = None
        self._began = time.monotonic()
        deadline: float | None = None
        checked = time.monotonic()
        while (code := process.poll()) is None:
            now = time.monotonic()
            if self.stopping() and deadline is None:
                deadline = now + self.settings.work.shutdown_grace_seconds + STOP_MARGIN_SECONDS
            if deadline is not None and now > deadline:
                process.kill()
            if now - checked >= 1.0:
                checked = now
                if not self.stopping() and self._is_wedged(now):
                    log.error(
                        "action=wedged the worker is idle while messages wait for %.0f s: it is replaced",
                        self.settings.work.wedged_after_seconds,
                    )
                    process.kill()
                    process.wait()
                    self._release(process.pid)
                    return EX_WEDGED
            time.sleep(WATCH_SECONDS)
        self._release(process.pid)
        return code

    def _release(self, pid: int) -> None:
        """Record the calls of the dead process, then free its chunks: in this order its cost precedes the job's end."""
        replay_journals(self.settings, self.redis)
        try:
            freed = release(self.redis, self.name, pid, self._process_token)
        except (RedisError, OSError) as exc:
            log.warning("action=release its leases must run out, Redis does not answer: %s", exc)
            return
        if freed:
            log.warning("action=release chunks=%d of the process that ended are free", freed)

    def _is_wedged(self, now: float) -> bool:
        try:
            waiting = waiting_messages(self.broker)
            # Its own watch sees a consumer that has stopped; here we see a process that has.
            (reply,) = replies_of(self.redis, [keys.worker(self.name)])
        except (RedisError, OSError):
            # Redis is away: no worker can consume.
            self._liveness.since = None
            return False
        report = amounts(reply, ("pid", "chunks_claimed"))
        busy = report.get("chunks_claimed")
        has_reported = self._process is not None and report.get("pid") == self._process.pid
        if not has_reported and now - self._began < START_SECONDS:
            # What stands there was said by the process before it, or nothing yet: this one is still starting.
            self._liveness.since = None
            return False
        claimed = int(busy) if has_reported and busy is not None else None
        return self._liveness.is_wedged(now=now, busy=claimed, waiting=waiting)

    def _reload(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGHUP)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        """First signal: a warm shutdown. Second: at once."""
        self.signals += 1
        if self._process and self._process.poll() is None:
            if self.signals == 1:
                self._process.terminate()
            else:
                self._process.kill()


def refuse_taken(redis: Redis, name: str) -> None:
    """Raise ConfigError where a worker of this name runs here: heartbeats, leases and remote control go by the name."""
    report = fleet.workers(redis).get(name, fleet.WorkerReport())
    try:
        process = psutil.Process(report.pid)
        # One that began after the last report has got the number of one that ended.
        is_taken = process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= report.at
    except (psutil.Error, ValueError):
        return  # it has ended, or is not of this machine
    if is_taken:
        raise ConfigError(f"--name: {name} runs already (process {process.pid}): choose another, or stop that worker")
