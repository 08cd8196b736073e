"""A job while it runs: lines where the output is no terminal, and a view for a terminal."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from msgspec import structs
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from scripts.lib.job_words import STALLED, batch_lines, figures, summary
from scripts.lib.terminal import warn
from tasks.jobs.pauses import RESUME, resume_command
from tasks.jobs.registry import JobStatus
from tasks.jobs.short_ids import short_id
from tasks.messages import Event
from tasks.texts import count

LAST: Final = 5
#: Columns of a job's name in front of its bar.
NAME_WIDTH: Final = 30
#: Seconds between two reads of a job, and so between two lines where the output is no terminal.
LINE_SECONDS: Final = 2.0
#: Seconds without a line after which there is one although nothing has changed.
QUIET_SECONDS: Final = 25.0


def is_drawn(console: Console) -> bool:
    """Whether a view can be drawn again in its place."""
    return console.is_terminal and not console.is_dumb_terminal


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
        # How long a wait takes changes all the time, and is no news.
        batches = status.batches and structs.replace(status.batches, oldest_at=None)
        ageless = replace(status, waiting_for=None, batches=batches)
        shown = self._text(ageless), status.wait.reason if status.wait else ""
        if shown == self._shown and time.monotonic() - self._at < QUIET_SECONDS:
            return None
        self._shown, self._at = shown, time.monotonic()
        return self._text(status)

    def _text(self, status: JobStatus) -> str:
        return "\n".join([self._words(status), *batch_lines(status)])


class View:
    """A job on a terminal: a bar, its figures, what holds it up, and the destinations that ended last."""

    def __init__(self, *, resume: str = RESUME, stalled: str = STALLED) -> None:
        self._resume, self._stalled = resume, stalled
        self._last: deque[Text] = deque(maxlen=LAST)
        self.reasons: Counter[str] = Counter()
        #: What bounds the job now, in one sentence; empty where that is not known.
        self.verdict = ""

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
        ended = status.done + status.failed
        first = Table.grid(Column(max_width=NAME_WIDTH), Column(ratio=1), Column(), padding=(0, 1), expand=True)
        bar = ProgressBar(max(1, status.total), ended, complete_style="green", finished_style="green")
        share = f"{100 * ended // status.total if status.total else 0} %"
        first.add_row(Text(status.name, "bold", no_wrap=True, overflow="ellipsis"), bar, share)
        held_up = [f"waiting: {status.waiting_for}"] if status.waiting_for else []
        if status.paused:
            held_up = [f"paused: {resume_command(status, short_id(status.job_id), resume=self._resume)}"]
        elif status.state == "stalled":
            held_up = [self._stalled]
        notes = [_line((text, "yellow")) for text in held_up]
        verdict = [Text(self.verdict)] if self.verdict else []
        batches = map(Text, batch_lines(status))
        return Group(first, Figures(figures(status)), *batches, *verdict, *notes, *self._last)


class Figures:
    """As many figures as a line of the terminal holds."""

    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = parts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = ""
        for part in self._parts:
            longer = f"{line}  {part}" if line else part
            if cell_len(longer) > options.max_width:
                break
            line = longer
        yield Text(line, no_wrap=True, overflow="ellipsis")


def _line(*parts: tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def _label(data: dict[str, Any]) -> str:
    return ", ".join(str(part) for part in (data.get("name"), data.get("country")) if part)
