"""`themes tune`: settings of running workers."""

import json
import sys
from typing import Any, Final

import click
from celery import Celery
from redis import Redis
from rich.console import Console
from rich.table import Table

from config.errors import ConfigError
from config.tuning import SHARED, TUNED, changes_of, tuned
from scripts.main import settings_from
from tasks import tuned as kept
from tasks import worker_reports as fleet
from tasks.connection import check_server, connect, locate
from tasks.queue.app import configure

#: Seconds that workers may take to answer.
ANSWER_SECONDS: Final = 5.0


@click.command()
@click.argument("changes", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--worker", metavar="NAME", help="Only this one; limits that all workers share cannot be its own.")
@click.option("--show", is_flag=True, help="Show what holds in each worker, and where it came from.")
@click.option("--reset", is_flag=True, help="Take back what was changed: the file holds again.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the workers' answers, and who gave none.")
def command(changes: tuple[str, ...], worker: str | None, *, show: bool, reset: bool, as_json: bool) -> int:
    """Change settings of workers while they run, for those that start later too, until --reset.

    An empty value (requests_per_minute=) takes a limit away. A value that any worker refuses changes nothing anywhere.
    Workers that did not answer are named, and the exit code is 1.
    """
    if bool(changes) + show + reset != 1:
        raise click.UsageError("give KEY=VALUE, or --show, or --reset")
    settings = settings_from()
    parsed = changes_of(changes)
    if worker and (shared := sorted(SHARED & parsed.keys())):
        raise ConfigError(f"{shared[0]}: all workers keep this limit together; leave out --worker")
    url = locate(settings)
    redis = connect(url, socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    check_server(redis)
    fleet_ = Fleet(configure(settings, settings.celery.broker_url or url), redis, worker)
    if show:
        answers = fleet_.ask("themes_settings")
        return _tell(answers, fleet_.names, as_json=as_json, table=_settings_table)
    if reset:
        kept.forget(redis, worker=fleet_.only or kept.ALL)
        answers = fleet_.ask("themes_reset")
    elif not fleet_.names:
        tuned(settings, parsed)
        kept.keep(redis, parsed)
        answers = {}
    else:
        judged = fleet_.ask("themes_tune", changes=list(changes), check=True)
        _refuse_if_any_does(judged)
        kept.keep(redis, parsed, worker=fleet_.only or kept.ALL)
        # Who was silent is told too, but not waited for a second time.
        answers = fleet_.ask("themes_tune", awaited=len(judged), changes=list(changes)) if judged else {}
    return _tell(answers, fleet_.names, as_json=as_json, table=_changes_table)


class Fleet:
    """The workers that live by their heartbeats, all of them or one."""

    def __init__(self, app: Celery, redis: Redis, worker: str | None) -> None:
        self._app = app
        known = sorted(fleet.workers(redis))
        self.names = [name for name in known if worker in {None, name, name.partition("@")[0]}]
        #: The one that was named.
        self.only = self.names[0] if worker and self.names else None
        if worker and not self.names:
            raise ConfigError(f"--worker: no worker {worker!r} is running; there are: {', '.join(known) or 'none'}")
        if worker and len(self.names) > 1:
            raise ConfigError(f"--worker: {worker!r} is more than one; there are: {', '.join(self.names)}")

    def ask(self, what: str, *, awaited: int | None = None, **arguments: Any) -> dict[str, Any]:
        """Their answers by name, waiting until a deadline for so many, by default for all of them."""
        if not self.names:
            return {}
        replies = self._app.control.broadcast(
            what,
            arguments=arguments,
            destination=self.names,
            reply=True,
            timeout=ANSWER_SECONDS,
            limit=len(self.names) if awaited is None else awaited,
        )
        return {name: answer for reply in replies or [] for name, answer in reply.items()}


def _refuse_if_any_does(answers: dict[str, Any]) -> None:
    for name, answer in sorted(answers.items()):
        if "error" in answer:
            raise ConfigError(f"{answer['error']} ({name}); nothing was changed")


def _tell(answers: dict[str, Any], names: list[str], *, as_json: bool, table: Any) -> int:
    silent = [name for name in names if name not in answers]
    failed = [name for name, answer in answers.items() if "error" in answer]
    if as_json:
        print(json.dumps({"workers": answers, "no_answer": silent}, ensure_ascii=False))
    else:
        Console(width=None if sys.stdout.isatty() else 150, highlight=False).print(table(answers))
    for name in failed:
        print(f"themes: {name}: {answers[name]['error']}", file=sys.stderr)
    if silent:
        print(
            f"themes: no answer within {ANSWER_SECONDS:g} s from {', '.join(silent)}: what was changed holds there "
            "when it answers again or is started again; see `themes doctor`",
            file=sys.stderr,
        )
    if not names:
        print("themes: no worker is running; what was changed holds for those that start", file=sys.stderr)
    return 1 if silent or failed else 0


def _settings_table(answers: dict[str, Any]) -> Table:
    table = Table("worker", "setting", "value", "origin", box=None)
    for name, answer in sorted(answers.items()):
        for key, one in answer.get("ok", {}).items():
            style = "bold" if one["origin"] == TUNED else None
            table.add_row(name, key, _text(one["value"]), one["origin"], style=style)
    return table


def _changes_table(answers: dict[str, Any]) -> Table:
    table = Table("worker", "setting", "before", "now", box=None)
    for name, answer in sorted(answers.items()):
        for key, (before, after) in answer.get("ok", {}).items():
            table.add_row(name, key, _text(before), _text(after))
        if answer.get("ok") == {}:
            table.add_row(name, "nothing", "", "")
    return table


def _text(value: Any) -> str:
    return "no limit" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
