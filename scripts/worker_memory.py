"""`themes worker-memory`: which lines of a running worker's code keep more and more memory."""

import json
import sys
from typing import Any, Final

import click

from scripts.lib.connections import ask, connected
from scripts.main import settings_from
from tasks import worker_reports as fleet
from tasks.connection import locate
from tasks.queue.app import configure
from tasks.texts import count

#: Seconds that workers may take to answer: a look at all that a large one holds takes a few.
ANSWER_SECONDS: Final = 15.0
MIB: Final = 2**20


@click.command(epilog="Example: themes worker-memory start --every 10")
@click.argument("action", type=click.Choice(["start", "compare", "stop"]))
@click.option("--worker", metavar="NAME", help="Only this one, by its whole name (NAME@HOST); by default all.")
@click.option(
    "--every", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True, metavar="SECONDS",
    help="With start: between two looks.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object: the answers by worker.")
def command(action: str, worker: str | None, every: float, *, as_json: bool) -> int:
    """Trace the memory of running workers: start, compare (after some minutes of work), stop.

    While it is on, a worker is several times slower.
    """
    settings = settings_from()
    url = locate(settings)
    redis = connected(settings, url)
    asked = [name for name in fleet.workers(redis) if worker in {None, name}]
    if not asked:
        print(f"no worker{f' {worker}' if worker else ''} lives: `themes doctor` lists those that do", file=sys.stderr)
        return 1
    app = configure(settings, settings.celery.broker_url or url)
    answers = ask(app, asked, "themes_memory", {"action": action, "every_seconds": every}, seconds=ANSWER_SECONDS)
    if as_json:
        print(json.dumps(answers))
    for name in sorted({*asked} - {*answers}):
        print(f"{name}: no answer within {ANSWER_SECONDS:g} s", file=sys.stderr)
    if not as_json:
        for name, said in sorted(answers.items()):
            _show(name, said)
    return 1 if len(answers) < len(asked) or any("error" in said for said in answers.values()) else 0


def _show(name: str, said: dict[str, Any]) -> None:
    if "error" in said:
        print(f"{name}: {said['error']}")
    elif "lines" not in said:
        print(f"{name}: {'tracing' if said['tracing'] else 'not tracing'}")
    else:
        suspects, looks = count(len(said["suspects"]), "suspect"), count(said["looks"], "look")
        print(f"{name}: {suspects} in {said['seconds']:g} s, {looks}")
        for line in said["lines"]:
            hourly = line["bytes_per_hour"] / MIB
            grows = f"grows all the time, {hourly:.1f} MiB/h" if line in said["suspects"] else line["reason"]
            held, more = line["bytes_held"] / MIB, line["bytes_grown"] / MIB
            print(f"  {line['file']}:{line['line']}  +{more:.2f} MiB, holds {held:.2f}  {grows}".rstrip())
