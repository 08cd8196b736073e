"""A job in words: one line of figures, lines where the output is no terminal, and a view for a terminal."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scripts.lib.terminal import warn
from tasks.jobs.registry import JobStatus, format_paused
from tasks.messages import Event
from tasks.texts import count, duration

LAST: Final = 5
#: Seconds between two reads of a job, and so between two lines where the output is no terminal.
LINE_SECONDS: Final = 2.0
#: Seconds without a line after which there is one although nothing has changed.
QUIET_SECONDS: Final = 25.0
#: What is said of a job that is not finished and that no worker goes on with.
STALLED: Final = "stalled: is a worker running?"


def exit_code(status: JobStatus, *, is_partial_failure: bool) -> int:
    """0 where every destination has a profile, else 1; also 1 for a partial profile where that `is_partial_failure`."""
    return 0 if status.succeeded and not (is_partial_failure and status.partial) else 1


def summary(status: JobStatus, *, short: bool = False, resume: str = "themes resume", stalled: str = STALLED) -> str:
    """A job's figures in one line; `resume` lets a paused job go on, `stalled` is said of one that no worker has."""
    figures = [] if short else [f"{status.name}: {status.state}"]
    figures.append(f"{status.done + status.failed}/{status.total}")
    outcomes = ((status.failed, "failed"), (status.partial, "partial"))
    figures += [f"{number} {what}" for number, what in outcomes if number]
    if status.rate_per_second:
        figures.append(f"{status.rate_per_second:.1f}/s")
    if status.eta_seconds is not None:
        figures.append(f"ETA {duration(status.eta_seconds)}")
    figures += [count(status.llm_calls, "call"), count(status.cache_hits, "cache hit")]
    figures.append(f"{(status.prompt_tokens + status.completion_tokens) / 1000:.0f}k tokens")
    if status.cost_usd:
        figures.append(f"${status.cost_usd:.2f}")
    if status.waiting_for:
        figures.append(f"waiting: {status.waiting_for}")
    if status.paused:
        figures.append(format_paused(status, resume=resume))
    elif status.state == "stalled":
        figures.append(stalled)
    return "  ".join(figures)


class Lines:
    """The lines about a job where the output is no terminal: one for each change, and one every `QUIET_SECONDS`."""

    def __init__(self, words: Callable[..., str] = summary) -> None:
        self._words = words
        self._shown: tuple[str, str] | None = None
        self._at = -math.inf

    def is_due(self) -> bool:
        return time.monotonic() - self._at >= LINE_SECONDS

    def next(self, status: JobStatus) -> str | None:
        """The line for this status; None where the last one still holds."""
        # How long a wait still takes changes all the time, and is no news.
        shown = self._words(replace(status, waiting_for=None)), status.wait.reason if status.wait else ""
        if shown == self._shown and time.monotonic() - self._at < QUIET_SECONDS:
            return None
        self._shown, self._at = shown, time.monotonic()
        return self._words(status)


class View:
    def __init__(self, words: Callable[..., str] = summary) -> None:
        self._words = words
        self._last: deque[Text] = deque(maxlen=LAST)
        self.reasons: Counter[str] = Counter()

    def add(self, event: Event | None) -> None:
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

    def print_failures(self, job_id: str) -> None:
        """Print the commonest reason why destinations failed, and how many others there are."""
        if self.reasons:
            (reason, number), *others = self.reasons.most_common()
            more = f" (and {count(len(others), 'other reason')})" if others else ""
            warn(f"{number:,} failed: {reason}{more}: see `themes failures {job_id}`")

    def render(self, status: JobStatus) -> Group:
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(1, status.total), completed=status.done + status.failed, width=40)
        figures = self._words(replace(status, waiting_for=None), short=True)
        line.add_row(Text(status.name, style="bold"), bar, Text(figures))
        waits = [Text(f"waiting: {status.waiting_for}", style="yellow")] if status.waiting_for else []
        return Group(line, *waits, *self._last)


def _line(*parts: tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _label(data: dict[str, Any]) -> str:
    return ", ".join(str(part) for part in (data.get("name"), data.get("country")) if part)
