"""`themes watch`: a job's progress while it runs, ending with the job."""

import math
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import click
import msgspec
from redis import ConnectionError as RedisConnectionError
from redis import Redis
from redis import TimeoutError as RedisTimeoutError
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from config.settings import Settings
from scripts.main import INTERRUPTED, settings_from
from scripts.partial import partial_lines
from tasks.connection import check_server, connect, locate
from tasks.errors import JobNotFoundError
from tasks.jobs import registry as jobs
from tasks.jobs.events import flat, follow
from tasks.messages import Event
from tasks.texts import count
from tasks.waits import duration

#: Destinations shown under the bar.
LAST: Final = 5
#: Seconds between two tries while Redis does not answer.
RECONNECT_SECONDS: Final = 1.0
#: Seconds between two looks, and so between two lines where the output is no terminal.
LINE_SECONDS: Final = 2.0
#: Seconds without a line after which there is one although nothing has changed.
QUIET_SECONDS: Final = 25.0
#: What is said of a job that is not finished and that no worker goes on with.
STALLED: Final = "stalled: is a worker running?"


fail_on_partial = click.option(
    "--fail-on-partial", "is_partial_failure", is_flag=True, help="Exit 1 also when any profile is partial."
)


@click.command()
@click.argument("job", metavar="JOB", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print every event as one line of JSON.")
@click.option("--from", "after", metavar="ID", default="0-0", help="Only events after this id.")
@fail_on_partial
def command(job: str | None, after: str, *, as_json: bool, is_partial_failure: bool) -> int:
    """Watch JOB (by default the newest) until it ends or stops at its budget; exit 1 when any destination failed."""
    settings = settings_from()
    redis = connect(locate(settings), socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    check_server(redis)
    job_id = job or jobs.latest(redis)
    if job_id is None:
        raise JobNotFoundError("there is no job yet: `themes enqueue FILE` makes one")
    if not as_json:
        return watch_to_end(redis, job_id, settings, after=after, is_partial_failure=is_partial_failure)
    try:
        _print_events(redis, job_id, settings, after)
    except KeyboardInterrupt:
        return _said_to_go_on(job_id)
    return exit_code(jobs.status(redis, job_id), is_partial_failure=is_partial_failure)


def _said_to_go_on(job_id: str) -> int:
    """Say that a job goes on without its watcher; returns the exit code of Ctrl-C."""
    print(
        f"themes: job {job_id} goes on: `themes watch {job_id}` shows it again, `themes cancel {job_id}` stops it",
        file=sys.stderr,
    )
    return INTERRUPTED


def _print_events(redis: Redis, job_id: str, settings: Settings, after: str) -> None:
    for event in reliable_events(redis, job_id, settings, after):
        if event is not None:
            sys.stdout.write(msgspec.json.encode(flat(event)).decode() + "\n")
            sys.stdout.flush()


def reliable_events(
    redis: Redis, job_id: str, settings: Settings, after: str = "0-0", *, look_seconds: float | None = None
) -> Iterator[Event | None]:
    """A job's events, going on after the last one seen when Redis has been away; None after each `look_seconds`."""
    position, told = after, False
    while True:
        try:
            for event in follow(job_id, after=position, timeout_seconds=look_seconds, settings=settings, redis=redis):
                position, told = event.id or position, False
                yield event
            return
        except TimeoutError:
            yield None
        except (RedisConnectionError, RedisTimeoutError) as exc:
            if not told:
                print(f"themes: Redis does not answer, waiting for it: {exc}", file=sys.stderr)
                told = True
            time.sleep(RECONNECT_SECONDS)


def watch_to_end(
    redis: Redis, job_id: str, settings: Settings, *, after: str = "0-0", is_partial_failure: bool = False
) -> int:
    """Show a job on standard error until it ends or stays paused, or until Ctrl-C; returns the exit code."""
    try:
        return _watched(redis, job_id, settings, after=after, is_partial_failure=is_partial_failure)
    except KeyboardInterrupt:
        return _said_to_go_on(job_id)


def _watched(redis: Redis, job_id: str, settings: Settings, *, after: str, is_partial_failure: bool) -> int:
    console = Console(stderr=True)
    view = View()
    events = reliable_events(redis, job_id, settings, after, look_seconds=LINE_SECONDS)
    if console.is_terminal:
        with Live(view.render(jobs.status(redis, job_id)), console=console, refresh_per_second=8) as live:
            for event in events:
                view.see(event)
                live.update(view.render(jobs.status(redis, job_id)))
            live.update(view.render(jobs.status(redis, job_id)))
    else:
        lines = Lines()
        for event in events:
            view.see(event)
            is_last = event is not None and event.type == "job.done"
            if (lines.is_due() or is_last) and (line := lines.next(jobs.status(redis, job_id))):
                console.print(line, highlight=False, soft_wrap=True)
        if (last := jobs.status(redis, job_id)).paused:
            console.print(summary(last), highlight=False, soft_wrap=True)
    view.say_failures(job_id)
    last = jobs.status(redis, job_id)
    for text in partial_lines(settings, last) if last.is_final else ():
        print(f"themes: {text}", file=sys.stderr)
    return exit_code(last, is_partial_failure=is_partial_failure)


def exit_code(status: jobs.JobStatus, *, is_partial_failure: bool) -> int:
    """0 where every destination has a profile, else 1; also 1 for a partial profile where that `is_partial_failure`."""
    return 0 if status.succeeded and not (is_partial_failure and status.partial) else 1


class Lines:
    """Which lines tell of a job where the output is no terminal.

    There is one when the figures or the reason of a wait have changed, and every `QUIET_SECONDS` in any case, so that
    silence never has to be explained.
    """

    def __init__(self, *, resume: str = "themes resume", stalled: str = STALLED) -> None:
        self._resume = resume
        self._stalled = stalled
        self._shown: tuple[str, str] | None = None
        self._at = -math.inf

    def is_due(self) -> bool:
        """Whether it is time for a look."""
        return time.monotonic() - self._at >= LINE_SECONDS

    def next(self, status: jobs.JobStatus) -> str | None:
        """The line that tells of this status; None where the last one still does."""
        # How long a wait still takes changes all the time, and is no news.
        figures = summary(replace(status, waiting_for=None), resume=self._resume, stalled=self._stalled)
        told = figures, status.wait.reason if status.wait else ""
        if told == self._shown and time.monotonic() - self._at < QUIET_SECONDS:
            return None
        self._shown, self._at = told, time.monotonic()
        return summary(status, resume=self._resume, stalled=self._stalled)


class View:
    """What the terminal shows of a job: a bar, the figures, the last destinations."""

    def __init__(self, *, resume: str = "themes resume", stalled: str = STALLED) -> None:
        self._resume = resume
        self._stalled = stalled
        self._last: deque[Text] = deque(maxlen=LAST)
        #: Why destinations failed, and how many did.
        self.reasons: Counter[str] = Counter()

    def see(self, event: Event | None) -> None:
        """Take in one event; None: nothing has happened."""
        if event is None:
            return
        data = event.data
        if event.type == "destination.done":
            top = ", ".join(data.get("top_themes", ()))
            self._last.append(_line(("✓ ", "green"), (f"{_label(data)}  ", "bold"), (top, "dim")))
        elif event.type == "destination.failed":
            why = f"{data.get('stage')}: {data.get('error_class')}"
            self.reasons[str(data.get("message"))] += 1
            self._last.append(_line(("✗ ", "red"), (f"{_label(data)}  ", "bold"), (why, "red")))

    def say_failures(self, job_id: str) -> None:
        """Say why destinations failed: the commonest reason, and how many others there are."""
        if self.reasons:
            (reason, number), *others = self.reasons.most_common()
            more = f" (and {count(len(others), 'other reason')})" if others else ""
            print(f"themes: {number:,} failed: {reason}{more}: see `themes failures {job_id}`", file=sys.stderr)

    def render(self, status: jobs.JobStatus) -> Group:
        """The view as it stands."""
        ended = status.done + status.failed
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(1, status.total), completed=ended, width=40)
        figures = summary(replace(status, waiting_for=None), short=True, resume=self._resume, stalled=self._stalled)
        line.add_row(Text(status.name, style="bold"), bar, Text(figures))
        waits = [Text(f"waiting: {status.waiting_for}", style="yellow")] if status.waiting_for else []
        return Group(line, *waits, *self._last)


def _line(*parts: tuple[str, str]) -> Text:
    """One line of a view, cut where the terminal ends."""
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _label(data: dict[str, Any]) -> str:
    return ", ".join(str(part) for part in (data.get("name"), data.get("country")) if part)


def summary(
    status: jobs.JobStatus, *, short: bool = False, resume: str = "themes resume", stalled: str = STALLED
) -> str:
    """A job's figures in one line; `resume` lets a paused one go on, `stalled` is said of one that nothing moves."""
    figures = [f"{status.done + status.failed}/{status.total}"]
    if not short:
        figures.insert(0, f"{status.name}: {status.state}")
    if status.failed:
        figures.append(f"{status.failed} failed")
    if status.partial:
        figures.append(f"{status.partial} partial")
    if status.rate_per_second:
        figures.append(f"{status.rate_per_second:.1f}/s")
    if status.eta_seconds is not None:
        figures.append(f"ETA {duration(status.eta_seconds)}")
    figures.append(count(status.llm_calls, "call"))
    figures.append(count(status.cache_hits, "cache hit"))
    figures.append(f"{(status.prompt_tokens + status.completion_tokens) / 1000:.0f}k tokens")
    if status.cost_usd:
        figures.append(f"${status.cost_usd:.2f}")
    if status.waiting_for:
        figures.append(f"waiting: {status.waiting_for}")
    if status.paused:
        figures.append(jobs.format_paused(status, resume=resume))
    elif status.state == "stalled":
        figures.append(stalled)
    return "  ".join(figures)
