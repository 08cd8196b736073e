"""`themes worker`: one worker process, kept alive.

Celery's worker on Redis ends by itself when Redis restarts at the wrong moment, when a message is garbage, and it may
stay alive without consuming. The supervisor starts it again in all three cases; leases make the duplicates free.
"""

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

import click
import psutil
from redis import Redis, RedisError

from config.settings import SUPERVISED, Settings
from scripts.main import log_level, settings_from
from scripts.processes import spawn
from tasks import keys
from tasks import worker_reports as fleet
from tasks.connection import check_rights, check_server, connect, locate
from tasks.errors import ConfigError
from tasks.queue.leases import release
from tasks.readings import amounts, replies_of
from workers.llm.endpoints.registry import endpoints
from workers.pipeline.graph import Graph
from workers.pipeline.prompts import stages_of
from workers.process.file_descriptors import ensure_descriptors, worker_descriptors
from workers.process.signals import on_hangup
from workers.results.journal import replay_journals
from workers.worker.liveness import EX_WEDGED, WedgeDetector, waiting_messages

log = logging.getLogger("themes.supervisor")

#: A Celery process that ends sooner than this, in seconds, did not live.
STILLBORN_SECONDS: Final = 5.0
#: Seconds that a process may take until its first heartbeat before it counts as one that has stopped.
START_SECONDS: Final = 60.0
#: Stillborn processes in a row after which the supervisor gives up.
STILLBIRTHS: Final = 5
#: Exit code of a process whose configuration is wrong: starting it again would not help.
EX_CONFIG: Final = 2
#: Seconds between two starts, at most.
MAX_BACKOFF_SECONDS: Final = 30.0
#: Seconds between two looks at the Celery process.
WATCH_SECONDS: Final = 0.25
#: Seconds beyond the grace time that a stopping process may take before it is killed.
STOP_MARGIN_SECONDS: Final = 1.0


def backoff_seconds(stillbirths: int) -> float:
    """Seconds to wait before the next start after so many that did not live; none after one that did."""
    return min(MAX_BACKOFF_SECONDS, 0.5 * float(2**stillbirths)) if stillbirths else 0.0


@dataclass
class Supervisor:
    """Starts one Celery worker process and starts it again when it dies or wedges."""

    settings: Settings
    redis: Redis
    broker: Redis
    name: str
    command: list[str]
    restarts: int = 0
    #: Of these, how many because the process was alive and consumed nothing.
    wedged: int = 0
    signals: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _process_token: str = ""
    #: When the process was started, in monotonic seconds.
    _began: float = 0.0
    _wedge: WedgeDetector = field(init=False)

    def __post_init__(self) -> None:
        self._wedge = WedgeDetector(self.settings.work.wedged_after_seconds)

    def stopping(self) -> bool:
        """Whether a signal has asked us to end."""
        return self.signals > 0

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        on_hangup(self._reload)
        stillbirths = 0
        while not self.stopping():
            began = time.monotonic()
            code = self._one_life()
            if self.stopping():
                break
            if code == EX_CONFIG:
                return code
            stillbirths = stillbirths + 1 if time.monotonic() - began < STILLBORN_SECONDS else 0
            if stillbirths >= STILLBIRTHS:
                log.error(
                    "action=give_up the worker process died %d times at once, last with code %d",
                    stillbirths,
                    code,
                )
                return 1
            self.restarts += 1
            self.wedged += code == EX_WEDGED
            delay = backoff_seconds(stillbirths)
            log.warning(
                "action=restart exit_code=%d restarts=%d wedged=%d delay_s=%.1f",
                code,
                self.restarts,
                self.wedged,
                delay,
            )
            self._wait(delay)
        return 0

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.stopping() and time.monotonic() < until:
            time.sleep(min(WATCH_SECONDS, seconds))

    def _one_life(self) -> int:
        """From one start of the Celery process to its end; returns its exit code."""
        self._process_token = uuid.uuid4().hex[:12]
        told = dict(zip(SUPERVISED, (str(self.restarts), str(self.wedged), self._process_token), strict=True))
        self._process = process = spawn(self.command, env=told)
        self._wedge.since = None
        self._began = time.monotonic()
        deadline: float | None = None
        looked = time.monotonic()
        while (code := process.poll()) is None:
            now = time.monotonic()
            if self.stopping() and deadline is None:
                deadline = now + self.settings.work.shutdown_grace_seconds + STOP_MARGIN_SECONDS
            if deadline is not None and now > deadline:
                process.kill()
            if now - looked >= 1.0:
                looked = now
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
        """Book what the process had in hand, and let others have at once what it held: it is dead.

        In this order: what it has cost is on the stream before anybody can end its job.
        """
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
            # Redis is away: nobody can consume, and nobody is to blame.
            self._wedge.since = None
            return False
        report = amounts(reply, ("pid", "chunks_claimed"))
        busy = report.get("chunks_claimed")
        has_reported = self._process is not None and report.get("pid") == self._process.pid
        if not has_reported and now - self._began < START_SECONDS:
            # What stands there was said by the process before it, or nothing yet: this one is still starting.
            self._wedge.since = None
            return False
        claimed = int(busy) if has_reported and busy is not None else None
        return self._wedge.is_wedged(now=now, busy=claimed, waiting=waiting)

    def _reload(self) -> None:
        """Have the Celery process read its settings again."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGHUP)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """First signal: a warm shutdown. Second: at once."""
        del number, frame
        self.signals += 1
        if self._process and self._process.poll() is None:
            if self.signals == 1:
                self._process.terminate()
            else:
                self._process.kill()


def celery_command(settings: Settings, name: str) -> list[str]:
    """The command line of the supervised Celery worker.

    Without gossip and mingle: workers have nothing to say to each other, and mingling costs a second at the start.
    """
    return [
        *(sys.executable, "-P", "-m", "scripts.celery_worker", "worker"),
        *("--pool", "threads", "--concurrency", str(settings.performance_optimization.worker_pool_size)),
        *("--hostname", name, "--loglevel", log_level(settings)),
        *("--without-gossip", "--without-mingle", "--events"),
    ]


def refuse_taken(redis: Redis, name: str) -> None:
    """Refuse the name of a worker that runs on this machine.

    Heartbeats, leases and remote control go by the name: of two workers that share one each would undo the other's.

    Raises:
        ConfigError: with the process that has the name.
    """
    report = fleet.workers(redis).get(name, fleet.WorkerReport())
    try:
        process = psutil.Process(report.pid)
        is_taken = process.is_running() and name in process.cmdline()
    except (psutil.Error, ValueError):
        return  # it has ended, or is not of this machine
    if is_taken:
        raise ConfigError(f"--name: {name} runs already (process {process.pid}): choose another, or stop that worker")


@click.command()
@click.option("--name", metavar="NAME", help="The worker's name; several on one machine need different ones.")
@click.option("--concurrency", type=int, metavar="N", help="Destinations in work at once (worker_pool_size).")
def command(name: str | None, concurrency: int | None) -> int:
    """Run one worker process in the foreground, and start it again when it dies."""
    settings = settings_from(performance_optimization__worker_pool_size=concurrency)
    if concurrency is not None:
        os.environ["THEMES_PERFORMANCE_OPTIMIZATION__WORKER_POOL_SIZE"] = str(concurrency)
    url = locate(settings)
    redis = connect(url, socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    check_server(redis)
    check_rights(redis)
    broker = redis
    if settings.celery.broker_url:
        broker = connect(settings.celery.broker_url, socket_timeout_seconds=settings.redis.socket_timeout_seconds)
        check_server(broker)
        check_rights(broker)
    # What is raised here the child inherits.
    ensure_descriptors("worker", worker_descriptors(settings))
    # What cannot work is said here, in one line, and not five times by a dying child.
    endpoints(settings.llm)
    Graph(stages_of(settings))
    # The process id alone is the same in many containers, and so may the host's name be.
    full_name = f"{name or f'worker-{os.getpid()}-{secrets.token_hex(2)}'}@{socket.gethostname()}"
    refuse_taken(redis, full_name)
    return Supervisor(settings, redis, broker, full_name, celery_command(settings, full_name)).run()
