"""Flower as the dashboard: its own pages, with readable tasks, kept over restarts, safe by default.

Flower 2.2 listens on all interfaces, without a password, unless told otherwise: anybody near could read task arguments
and shut workers down. Here it listens on loopback, and anywhere else only with a password.
"""

import errno
import ipaddress
import logging
import os
import re
import socket
from typing import Any, Final

from celery import Celery

from config.settings import Settings
from tasks.errors import ConfigError
from workers.dashboard.server import install

#: Tasks kept in memory, at 4.3 KB each; Flower's own default is ten times that.
MAX_TASKS: Final = 10_000
#: Milliseconds between two saves of Flower's state; survives kill -9.
SAVE_INTERVAL_MS: Final = 30_000
#: Columns of the task list; `args` shows the destinations.
TASK_COLUMNS: Final = "name,args,state,received,runtime,worker"
#: Flower cuts a list of users at commas, so that `me:a,b` would let `me:a` in, and compares ASCII only.
_USER_AND_PASSWORD: Final = re.compile(r"[!-+\--9;-~]+:[!-+\--~]+")


def arguments(settings: Settings) -> list[str]:
    """Flower's command line for these settings.

    Raises:
        ConfigError: it would be open to others, or its port is taken.
    """
    dashboard = settings.dashboard
    refuse_open(settings)
    _refuse_taken(dashboard.host, dashboard.port)
    folder = settings.state_dir / "flower"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"state_dir: {folder} cannot be written ({exc.strerror})") from exc
    chosen = [
        f"--address={dashboard.host}",
        f"--port={dashboard.port}",
        f"--max_tasks={MAX_TASKS}",
        "--persistent=True",
        f"--db={(folder / 'state.db').absolute()}",
        f"--state_save_interval={SAVE_INTERVAL_MS}",
        f"--tasks_columns={TASK_COLUMNS}",
    ]
    if dashboard.basic_auth:
        # Handed over inside this process: nobody reads it from the list of processes.
        chosen.append(f"--basic_auth={str.__str__(dashboard.basic_auth)}")
    return chosen


def refuse_open(settings: Settings) -> None:
    """Refuse a dashboard that others could use, or a password that Flower cannot ask for.

    Raises:
        ConfigError: with the mend.
    """
    dashboard = settings.dashboard
    if not _is_loopback(dashboard.host) and not dashboard.basic_auth:
        raise ConfigError(
            f"dashboard.host: {dashboard.host} is reachable by others, and nothing asks for a password: set "
            "THEMES_DASHBOARD__BASIC_AUTH=user:password, or listen on 127.0.0.1"
        )
    if dashboard.basic_auth and not _USER_AND_PASSWORD.fullmatch(dashboard.basic_auth):
        raise ConfigError(
            "dashboard.basic_auth: expected user:password, neither of them empty, in ASCII without blanks and commas "
            "(THEMES_DASHBOARD__BASIC_AUTH)"
        )


def run(app: Celery, settings: Settings, redis_url: str) -> None:
    """Serve the dashboard until SIGTERM or SIGINT; `redis_url` is where the jobs are."""
    chosen = arguments(settings)
    install(settings, redis_url)
    if not os.environ.get("THEMES_DEBUG"):
        # A worker that has not answered yet is reported as "Inspect method … failed", which users take for an error.
        logging.getLogger("flower.inspector").setLevel(logging.ERROR)
    app.start(["flower", *chosen])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_taken(host: str, port: int) -> None:
    """Bind for a moment what Flower will: every address that the host's name has."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            try:
                _bind_once(socket.socket(family, kind, protocol), address)
            except OSError as exc:
                # `localhost` may have an IPv6 address that this machine has not; Flower passes over it too.
                if len(found) == 1 or exc.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                    raise
    except OSError as exc:
        raise ConfigError(
            f"dashboard.port: cannot listen on {host}:{port} ({exc.strerror}): stop what is there, or choose "
            "another with --port"
        ) from exc


def _bind_once(probe: socket.socket, address: Any) -> None:
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if probe.family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(address)
