"""`themes health ROLE`: what a container's healthcheck or probe asks."""

import contextlib
import http.client
import os
import socket
from typing import Final

import click

from config.settings import Settings
from scripts.main import settings_from
from tasks import worker_reports as fleet
from tasks.connection import connect, locate, translated
from tasks.errors import RedisUnavailableError

#: Seconds that a dashboard may take to answer.
ANSWER_SECONDS: Final = 5.0
#: Seconds to wait for Redis, in each of two tries: an answer is due before the probe's own time is up.
REDIS_SECONDS: Final = 3.0
#: Addresses that mean all of them, and where such a server is reached from here.
ALL: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared with, not bound to
ANSWERS: Final = frozenset({200, 401})


@click.command(epilog="Example: themes health worker")
@click.argument("role", type=click.Choice(["worker", "consumer", "dashboard"]))
def command(role: str) -> int:
    """Say whether a worker, consumer or dashboard of this host lives; exit 1 when none does.

    A worker or consumer lives when it has reported to Redis within 15 seconds. While Redis is away nothing is known and
    the exit code is 0: the processes wait for it, and a new start would not help.
    """
    settings = settings_from()
    if role == "dashboard":
        found, what = dashboard_answers(settings), f"a dashboard on port {settings.dashboard.port}"
    else:
        try:
            found, what = reports_of_this_host(settings, role), f"a {role} that has reported within 15 s"
        except RedisUnavailableError as exc:
            print(f"not known: {exc}")
            return 0
    print(f"{'ok' if found else 'none'}: {what}")
    return 0 if found else 1


def dashboard_answers(settings: Settings) -> bool:
    """Whether the dashboard of these settings answers, be it with the question for the password."""
    host = ALL.get(settings.dashboard.host, settings.dashboard.host)
    connection = http.client.HTTPConnection(host, settings.dashboard.port, timeout=ANSWER_SECONDS)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/healthcheck")
        return connection.getresponse().status in ANSWERS
    return False


def reports_of_this_host(settings: Settings, role: str) -> bool:
    """Whether a process of this role that runs here has a report in Redis; one expires after 15 s."""
    host = socket.gethostname()
    timeout = min(REDIS_SECONDS, settings.redis.socket_timeout_seconds)
    with connect(locate(settings), socket_timeout_seconds=timeout) as redis, translated(redis):
        if role == "worker":
            pids = [report.pid for report in fleet.workers(redis).values() if report.host == host]
        else:
            pids = [one.pid for name, one in fleet.consumers(redis).items() if name.rsplit("-", 2)[0] == host]
    return any(map(_runs, pids))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return pid > 0
