"""`themes up`: the whole stack on this machine, in the foreground, ending with it."""

import contextlib
import shlex
import time
from typing import Final

import click

from config.container import cpus_allowed, here
from config.settings import Settings
from scripts.lib.llm_probe import LlmProbe
from scripts.lib.processes import Interrupted, interruptible
from scripts.lib.stack import REDIS_URL, WATCH_SECONDS, Stack, database_place, stack
from scripts.lib.terminal import say
from scripts.main import settings_from
from tasks.redis_url import masked
from workers.llm.endpoints.registry import endpoints

#: Worker processes without `--workers`, at most.
MAX_WORKERS: Final = 2


@click.command(epilog="Example: themes up --sandbox --workers 2")
@click.option(
    "--workers", type=click.IntRange(1, 64), help=f"Worker processes; by default one a CPU, at most {MAX_WORKERS}."
)
@click.option("--sandbox", is_flag=True, help="Answer from the sandbox LLM instead of a real one.")
@click.option("--dashboard/--no-dashboard", default=True, show_default=True, help="Run Flower too.")
def command(workers: int | None, *, sandbox: bool, dashboard: bool) -> int:
    """Run Redis (if none is set), workers, consumer and dashboard here until Ctrl-C."""
    settings = settings_from()
    workers = workers or min(MAX_WORKERS, cpus_allowed(here()))
    if not sandbox:
        endpoints(settings.llm)
    with contextlib.suppress(Interrupted), interruptible(), stack(settings, sandbox=sandbox) as made:
        made.start_workers(workers)
        made.start_others(dashboard=dashboard)
        # After the last start: a process that runs threads should not fork.
        probe = None if sandbox else LlmProbe(settings)
        made.wait_until_ready()
        _print_ready(made)
        if probe:
            probe.warn()
        while True:
            made.check()
            time.sleep(WATCH_SECONDS)
    say("stopped")
    return 0


def _prefix(settings: Settings) -> str:
    """What another terminal must say to find this stack by its state directory."""
    if not settings.is_set("state_dir") or settings.is_set(REDIS_URL):
        return ""
    return f"THEMES_STATE_DIR={shlex.quote(str(settings.state_dir.absolute()))} "


def _print_ready(made: Stack) -> None:
    settings = made.settings
    lines = [
        f"redis      {masked(made.redis_url)}",
        f"database   {database_place(settings)}",
        f"workers    {len(made.workers)}, logs in {made.logs}",
    ]
    if made.port is not None:
        lines.append(f"dashboard  http://{settings.dashboard.host}:{made.port}/jobs")
    lines.append(f"ready: `{_prefix(settings)}themes enqueue FILE` in another terminal; Ctrl-C stops everything")
    say("\n".join(lines))
