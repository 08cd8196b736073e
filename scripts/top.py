"""`themes top`: the live system in the terminal, drawn anew every second."""

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import click
from redis import RedisError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scripts.lib.job_view import is_drawn
from scripts.lib.job_words import state_of
from scripts.lib.terminal import table
from scripts.main import settings_from
from tasks.connection import check_server, connect, locate
from tasks.errors import RedisUnavailableError
from tasks.jobs.registry import JobStatus
from tasks.jobs.short_ids import short_id, short_ids
from tasks.texts import count, duration
from workers.dashboard.live import LiveReader, Snapshot
from workers.observe.format import percent, size

EVERY_SECONDS: Final = 1.0
#: Seconds between two plain lines where the output is no terminal.
LINE_SECONDS: Final = 2.0
#: Longest wait for Redis, in seconds: a view that stands still for longer is of no use.
REDIS_SECONDS: Final = 3.0
BAR: Final = 20
#: Columns of a terminal below which the less important columns of a table are left out.
WIDE: Final = 100
#: Lines of the view beside those of jobs, workers and consumers, and jobs that are shown on the lowest terminal.
OTHER_LINES: Final = 14
MIN_JOBS: Final = 3
STYLES: Final = {"done": "green", "running": "cyan", "paused": "yellow", "stalled": "yellow", "cancelled": "red"}


@click.command(epilog="Example: themes top --once")
@click.option("--once", is_flag=True, help="One look, and end.")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each look, on standard output.")
def command(*, once: bool, as_json: bool) -> None:
    """Show jobs, workers, queue and calls as they are now; q or Ctrl-C ends it.

    A worker whose lanes are all busy, a pool in full use, or a growing queue of results shows here first.
    """
    settings = settings_from()
    timeout = min(REDIS_SECONDS, settings.redis.socket_timeout_seconds)
    redis = connect(locate(settings), socket_timeout_seconds=timeout)
    broker_url = settings.celery.broker_url
    reader = LiveReader(redis, connect(broker_url, socket_timeout_seconds=timeout) if broker_url else None)
    if once:
        check_server(redis)
        _print(reader.read(), as_json=as_json)
        return
    try:
        _show(reader, as_json=as_json)
    except KeyboardInterrupt:
        return


def _show(reader: LiveReader, *, as_json: bool) -> None:
    console = Console()
    if as_json or not is_drawn(console):
        while True:
            _print(_read(reader), as_json=as_json)
            time.sleep(EVERY_SECONDS if as_json else LINE_SECONDS)
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(view(_read(reader), is_wide=console.width >= WIDE, height=console.height), refresh=True)
            if pressed(EVERY_SECONDS) in {"q", "Q", "\x1b"}:
                return


def _read(reader: LiveReader) -> Snapshot:
    """The system; while Redis is away, what was read last, with the reason."""
    try:
        return reader.read()
    except (RedisError, OSError, RedisUnavailableError) as bad:
        return reader.stale(f"Redis does not answer: {bad}")


def _print(system: Snapshot, *, as_json: bool) -> None:
    print(json.dumps(system.as_dict(), ensure_ascii=False) if as_json else line(system), flush=True)


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Keys as they are pressed, without echo; the terminal is as it was at the end."""
    if not sys.stdin.isatty():
        yield _no_keys
        return
    import termios  # not on every system that has a Python
    import tty

    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    tty.setcbreak(handle)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([handle], [], [], seconds)
        return os.read(handle, 1).decode("utf-8", "replace") if ready else ""

    try:
        yield pressed
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


def _no_keys(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def line(system: Snapshot) -> str:
    if system.trouble:
        return system.trouble
    moment = time.strftime("%H:%M:%S", time.gmtime(system.at))
    parts = [
        f"{moment}  {count(len(system.workers), 'worker')}",
        f"lanes {system.lanes_busy}/{system.lanes}",
        f"connections {system.connections_in_use}/{system.connections}",
        f"queue {system.queued:,}",
        f"not yet saved {system.results_lag:,}",
        f"{rate(system.calls_per_second)} calls/s",
        f"cache hit rate {percent(system.hit_rate, '-')}",
        f"429s {rate(system.refusals_per_second)}/s",
    ]
    parts += [
        f"{job.name}: {job.unreadable or state_of(job)} {job.done + job.failed:,}/{job.total:,}"
        for job in system.jobs
        if not job.is_final
    ]
    parts += _batches(system)
    parts += [f"waiting: {words}" for words in system.waits]
    parts += [system.verdict] if system.verdict else []
    return "  ".join(parts)


def _batches(system: Snapshot) -> list[str]:
    running = [job for job in system.jobs if job.batches and not job.is_final]
    return [f"{short_id(job.job_id)} {job.batches.format()}" for job in running if job.batches]


def rate(per_second: float | None) -> str:
    return "-" if per_second is None else f"{per_second:.1f}" if per_second < 100 else f"{per_second:,.0f}"  # noqa: PLR2004


def view(system: Snapshot, *, is_wide: bool = True, height: int | None = None) -> RenderableType:
    """The whole picture; where it is given a `height`, with so many jobs that the rest has room."""
    batches = [_last(words) for words in _batches(system)]
    taken = OTHER_LINES + len(system.workers) + len(system.consumers) + len(batches)
    most = len(system.jobs) if height is None else max(MIN_JOBS, height - taken)
    parts: list[RenderableType] = [_head(system)]
    if system.verdict:
        parts.append(Text(system.verdict))
    if system.trouble:
        parts.append(Text(f"{system.trouble}; what follows is from before", style="bold red"))
    parts += [Text(), _jobs(system.jobs[:most], is_wide=is_wide)]
    parts += batches
    parts += [Text(f"waiting: {words}", style="yellow") for words in system.waits]
    parts += [Text(), _workers(system, is_wide=is_wide)]
    if system.consumers:
        parts += [Text(), _consumers(system)]
    parts += [Text(), Text("q or Ctrl-C ends this", style="dim")]
    return Group(*parts)


def _head(system: Snapshot) -> RenderableType:
    waiting = f" (+{system.connections_waiting} wait)" if system.connections_waiting else ""
    connections = f"{system.connections_in_use}/{system.connections}{waiting}"
    refused, failed = system.refusals_per_second, system.errors_per_second
    return Group(
        _cells(
            Text("themes", style="bold"),
            _cell("lanes", f"{system.lanes_busy}/{system.lanes}"),
            _cell("connections", connections),
            _cell("queue", f"{system.queued:,}"),
            _cell("not yet saved", f"{system.results_lag:,}"),
        ),
        _cells(
            Text(time.strftime("%H:%M:%S UTC", time.gmtime(system.at)), style="dim"),
            _cell("calls/s", rate(system.calls_per_second)),
            _cell("cache hit rate", percent(system.hit_rate, "-")),
            _cell("429s/s", rate(refused), is_bad=bool(refused)),
            _cell("failed calls/s", rate(failed), is_bad=bool(failed)),
        ),
    )


def _cells(*cells: Text) -> Text:
    return Text("  ", no_wrap=True, overflow="ellipsis").join(cells)


def _cell(words: str, value: str, *, is_bad: bool = False) -> Text:
    return Text.assemble((f"{words} ", "dim"), (value, "bold red" if is_bad else "bold"))


def _jobs(jobs: Sequence[JobStatus], *, is_wide: bool) -> RenderableType:
    if not jobs:
        return Text("no job yet: themes enqueue FILE", style="dim")
    titles = ("job", "state", "finished", "failed", "rate", "left", *(("calls", "hits", "") if is_wide else ()), "name")
    shown = table(*titles, right=slice(2, 8 if is_wide else 6))
    short = short_ids(job.job_id for job in jobs)
    for job in jobs:
        ended = job.done + job.failed
        more: tuple[RenderableType, ...] = (
            f"{job.llm_calls:,}", f"{job.cache_hits:,}",
            ProgressBar(max(1, job.total), ended, BAR, complete_style="green", finished_style="green"),
        )  # fmt: skip
        shown.add_row(
            short[job.job_id], Text(state_of(job), style=STYLES.get(state_of(job), "")), f"{ended:,}/{job.total:,}",
            Text(f"{job.failed:,}", style="red" if job.failed else ""),
            "" if job.is_final else f"{rate(job.rate_per_second)}/s",
            "" if job.eta_seconds is None else duration(max(1.0, job.eta_seconds)), *(more if is_wide else ()),
            _last(f"{job.name}: {job.unreadable}" if job.unreadable else job.name),
        )  # fmt: skip
    return _one_line_each(shown)


def _one_line_each(shown: Table) -> Table:
    """A table whose last column alone is cut where the terminal is narrow."""
    for column in shown.columns[:-1]:
        column.no_wrap = True
    return shown


def _last(text: str, style: str = "") -> Text:
    """A cell of the last column."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _workers(system: Snapshot, *, is_wide: bool) -> RenderableType:
    if not system.workers:
        return Text("no worker is alive: themes worker (or themes up)", style="yellow")
    titles = ("worker", "lanes", "waiting", "connections", "CPU", "memory", *(("restarts",) if is_wide else ()), "says")
    shown = table(*titles, right=slice(1, len(titles) - 1))
    for name, worker in system.workers.items():
        shown.add_row(
            Text(name), f"{worker.lanes_busy}/{worker.lanes}", str(worker.lanes_waiting),
            f"{worker.connections_in_use}/{worker.connections} +{worker.connections_waiting}",
            "-" if worker.usage.cpu_percent is None else f"{worker.usage.cpu_percent:.0f} %",
            "-" if worker.usage.rss_bytes is None else size(worker.usage.rss_bytes),
            *((str(worker.restarts),) if is_wide else ()), _last(worker.says, "yellow"),
        )  # fmt: skip
    return _one_line_each(shown)


def _consumers(system: Snapshot) -> RenderableType:
    titles = ("consumer", "not yet saved", "entries/s", "a batch", "last batch", "refused")
    shown = table(*titles, right=slice(1, None))
    for name, each in system.consumers.items():
        shown.add_row(
            Text(name), f"{each.lag:,}", f"{each.entries_per_second:.1f}", duration(each.ms_per_batch / 1000),
            str(each.last_batch), str(each.rejected),
        )  # fmt: skip
    return shown
