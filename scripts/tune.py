"""`themes tune`: settings of running workers."""

import json
from functools import partial
from typing import Any, Final

import click
from redis import Redis
from rich.table import Table

from config.errors import ConfigError
from config.tuning import SHARED, TUNED, changes_of, tuned
from scripts.lib.connections import ask, connected
from scripts.lib.terminal import console, table, warn
from scripts.main import settings_from
from tasks import tuned as kept
from tasks import worker_reports as fleet
from tasks.connection import locate
from tasks.queue.app import configure

ANSWER_SECONDS: Final = 5.0


@click.command(epilog="Example: themes tune requests_per_minute=300")
@click.argument("changes", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--worker", metavar="NAME", help="Only this one; limits that all workers share cannot be its own.")
@click.option("--show", is_flag=True, help="Show what holds in each worker, and where it came from.")
@click.option("--reset", is_flag=True, help="Take back what was changed: the file holds again.")
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object: the workers' answers, and the workers without one."
)
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
    redis = connected(settings, url)
    names = _named(redis, worker)
    kept_for = names[0] if worker else kept.ALL
    asked = partial(ask, configure(settings, settings.celery.broker_url or url), names, seconds=ANSWER_SECONDS)
    if show:
        answers = asked("themes_settings", {})
        return _show(answers, names, _settings_table(answers), as_json=as_json)
    if reset:
        kept.forget(redis, worker=kept_for)
        answers = asked("themes_reset", {})
    elif not names:
        tuned(settings, parsed)
        kept.keep(redis, parsed)
        answers = {}
    else:
        judged = asked("themes_tune", {"changes": list(changes), "check": True})
        _refuse_if_any_does(judged)
        kept.keep(redis, parsed, worker=kept_for)
        # Silent workers get the change too, but are not waited for a second time.
        answers = asked("themes_tune", {"changes": list(changes)}, awaited=len(judged)) if judged else {}
    return _show(answers, names, _changes_table(answers), as_json=as_json)


def _named(redis: Redis, worker: str | None) -> list[str]:
    """All workers, or the one that has this name with or without its host."""
    known = list(fleet.workers(redis))
    names = [name for name in known if worker in {None, name, name.partition("@")[0]}]
    if worker and not names:
        raise ConfigError(f"--worker: no worker {worker!r} is running; there are: {', '.join(known) or 'none'}")
    if worker and len(names) > 1:
        raise ConfigError(f"--worker: {worker!r} is more than one; there are: {', '.join(names)}")
    return names


def _refuse_if_any_does(answers: dict[str, Any]) -> None:
    for name, answer in sorted(answers.items()):
        if "error" in answer:
            raise ConfigError(f"{answer['error']} ({name}); nothing was changed")


def _show(answers: dict[str, Any], names: list[str], shown: Table, *, as_json: bool) -> int:
    silent = [name for name in names if name not in answers]
    failed = [name for name, answer in answers.items() if "error" in answer]
    if as_json:
        print(json.dumps({"workers": answers, "no_answer": silent}, ensure_ascii=False))
    else:
        console().print(shown)
    for name in failed:
        warn(f"{name}: {answers[name]['error']}")
    if silent:
        warn(
            f"no answer within {ANSWER_SECONDS:g} s from {', '.join(silent)}: what was changed holds there when it "
            "answers again or is started again; see `themes doctor`"
        )
    if not names:
        warn("no worker is running; what was changed holds for those that start")
    return 1 if silent or failed else 0


def _settings_table(answers: dict[str, Any]) -> Table:
    shown = table("worker", "setting", "value", "origin")
    for name, answer in sorted(answers.items()):
        for key, one in answer.get("ok", {}).items():
            style = "bold" if one["origin"] == TUNED else None
            shown.add_row(name, key, _text(one["value"]), one["origin"], style=style)
    return shown


def _changes_table(answers: dict[str, Any]) -> Table:
    shown = table("worker", "setting", "before", "now")
    for name, answer in sorted(answers.items()):
        for key, (before, after) in answer.get("ok", {}).items():
            shown.add_row(name, key, _text(before), _text(after))
        if answer.get("ok") == {}:
            shown.add_row(name, "nothing", "", "")
    return shown


def _text(value: Any) -> str:
    return "no limit" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
