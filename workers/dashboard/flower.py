"""Flower as the dashboard, safe by default.

Flower 2.2 listens on all interfaces without a password; here on loopback, and elsewhere only with a password or an auth
provider, however it is started and configured (options, `FLOWER_*`, `flowerconfig.py`).
"""

import errno
import logging
import os
import re
import socket
import sys
from collections.abc import Iterable
from typing import Any, Final

from celery import Celery

from config.errors import ThemesError
from config.settings import Settings
from tasks.errors import ConfigError
from workers.dashboard.guard import has_login, is_loopback

#: Tasks kept in memory, at 4.3 KB each; Flower's own default is ten times that.
MAX_TASKS: Final = 10_000
#: Seconds after which the metrics of a worker that has gone are forgotten, as we forget its name.
PURGE_SECONDS: Final = 3_600
#: Columns of the task list; `args` shows the destinations.
TASK_COLUMNS: Final = "uuid,args,state,received,runtime,worker"
#: Flower cuts a list of users at commas, so that `me:a,b` would let `me:a` in, and compares ASCII only.
_USER_AND_PASSWORD: Final = re.compile(r"[!-+\--9;-~]+:[!-+\--~]+")
EX_CONFIG: Final = 2


def defaults(settings: Settings) -> dict[str, Any]:
    """Flower's options as our settings have them; Flower's own options win."""
    dashboard = settings.dashboard
    chosen: dict[str, Any] = {
        "address": dashboard.host,
        "port": dashboard.port,
        "max_tasks": MAX_TASKS,
        # Flower keeps its state as a pickle, which runs what another user may have put there.
        "persistent": False,
        # A flowerconfig.py is a program: one that lies in the current directory is not run, one that is named is.
        "conf": os.devnull,
        "tasks_columns": TASK_COLUMNS,
        "purge_offline_workers": PURGE_SECONDS,
    }
    if dashboard.basic_auth:
        # Passed inside this process: the list of processes does not show it.
        chosen["basic_auth"] = [str.__str__(dashboard.basic_auth)]
    return chosen


def check(options: Any, settings: Settings) -> None:
    """Raise ConfigError for unsafe or useless options of Flower, wherever set; an unset address becomes ours."""
    if not options.address and not options.unix_socket:
        options.address = settings.dashboard.host
    _refuse_odd_users(options.basic_auth or ())
    if options.auth and not options.auth_provider:
        raise ConfigError(
            "auth: is set without auth_provider, so that nobody could log in: add "
            "--auth_provider=flower.views.auth.GithubLoginHandler (or Google…, GitLab…, Okta…), or take --basic_auth"
        )
    if not options.unix_socket:
        _refuse_without_login(options.address, has_login=has_login(options))
        _refuse_taken(options.address, options.port)


def refuse_open(settings: Settings) -> None:
    """Raise ConfigError where others could use the dashboard, or Flower cannot ask for its password."""
    dashboard = settings.dashboard
    users = [str.__str__(dashboard.basic_auth)] if dashboard.basic_auth else []
    _refuse_odd_users(users)
    _refuse_without_login(dashboard.host, has_login=bool(users))


def _refuse_odd_users(users: Iterable[str]) -> None:
    if not all(_USER_AND_PASSWORD.fullmatch(user) for user in users):
        raise ConfigError(
            "dashboard.basic_auth: expected user:password, neither of them empty, in ASCII without blanks and commas "
            "(THEMES_DASHBOARD__BASIC_AUTH, FLOWER_BASIC_AUTH, --basic_auth)"
        )


def _refuse_without_login(address: str, *, has_login: bool) -> None:
    if not is_loopback(address) and not has_login:
        raise ConfigError(
            f"dashboard.host: {address} is reachable by others, and nothing asks for a password: set "
            "THEMES_DASHBOARD__BASIC_AUTH=user:password or Flower's auth and auth_provider, or listen on 127.0.0.1"
        )


def offer(settings: Settings, redis_url: str) -> None:
    """Make Flower's command build our dashboard. Cheap: Celery has imported that command already."""
    import flower.command
    from tornado.options import options

    for name, value in defaults(settings).items():
        setattr(options, name, value)

    def build(**given: Any) -> Any:
        from workers.dashboard.server import Dashboard, install

        try:
            check(given["options"], settings)
        except ThemesError as exc:
            print(f"themes: {exc}", file=sys.stderr)  # noqa: T201  # the user's terminal
            raise SystemExit(EX_CONFIG) from exc
        if not os.environ.get("THEMES_DEBUG"):
            # A worker that has not answered yet is reported as "Inspect method … failed", taken for an error by users.
            logging.getLogger("flower.inspector").setLevel(logging.ERROR)
        install(settings, redis_url)
        return Dashboard(**given)

    flower.command.Flower = build


def run(app: Celery, settings: Settings, redis_url: str) -> None:
    """Serve the dashboard until SIGTERM or SIGINT; `redis_url` is where the jobs are. Ends with 2 where it must not."""
    offer(settings, redis_url)
    chosen = defaults(settings)
    # As options, so that they win over what `FLOWER_*` and a flowerconfig.py say of the same.
    chosen_options = [f"--{name}={chosen[name]}" for name in ("address", "port")]
    if "basic_auth" in chosen:
        chosen_options.append(f"--basic_auth={chosen['basic_auth'][0]}")
    app.start(["flower", *chosen_options])


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
            "another (THEMES_DASHBOARD__PORT, or `themes dashboard --port`)"
        ) from exc


def _bind_once(probe: socket.socket, address: Any) -> None:
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if probe.family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind(address)
