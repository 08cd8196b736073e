"""What `themes run` shows on standard error while it works: what `themes watch` shows of a job elsewhere."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Final

from rich.console import Console
from rich.live import Live

from config.settings import Settings
from scripts.lib.job_view import LINE_SECONDS, Lines, View, is_drawn
from scripts.lib.job_words import summary
from tasks.jobs.budget import NANO
from tasks.jobs.registry import JobStatus, waiting
from workers.local.job import LocalJob
from workers.results.database.rows import Applied, JobRow
from workers.results.progress import RateWindow, counters, destination_event
from workers.results.queries.status import status_of

#: Seconds between two pictures on a terminal.
DRAW_SECONDS: Final = 0.2

_RESUME: Final = "themes run --resume"
_STOPPED: Final = "stopped"
#: A job's figures in one line; there are no workers that could go on with it.
words: Final = partial(summary, resume=_RESUME, stalled=_STOPPED)


class Progress:
    """A job's progress, as it becomes durable. With `enable_streaming_results` off only its end is printed."""

    def __init__(self, settings: Settings) -> None:
        self._is_wanted = settings.performance_optimization.enable_streaming_results
        self.view = View(resume=_RESUME, stalled=_STOPPED)
        self._rates = RateWindow()
        self._row: JobRow | None = None
        self._rate = 0.0

    def written(self, applied: Applied) -> None:
        for outcome in applied.outcomes:
            self.view.add(destination_event(outcome))
        for row in applied.jobs.values():
            self._row = row
            self._rate = self._rates.rate(row, time.time())

    async def show(self, job: LocalJob) -> None:
        if not self._is_wanted:
            return
        console = Console(stderr=True)
        if is_drawn(console):
            await self._show_live(console, job)
        else:
            await self._show_lines(console, job)

    async def _show_live(self, console: Console, job: LocalJob) -> None:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                if self._row:
                    live.update(self.view.render(self.status_of(self._row, job)), refresh=True)
                await asyncio.sleep(DRAW_SECONDS)

    async def _show_lines(self, console: Console, job: LocalJob) -> None:
        lines = Lines(words)
        while True:
            await asyncio.sleep(LINE_SECONDS)
            if self._row and (line := lines.next(self.status_of(self._row, job))):
                console.print(line, highlight=False, soft_wrap=True)

    def status_of(self, row: JobRow, job: LocalJob) -> JobStatus:
        figures = counters(row, self._rate)
        more: dict[str, object] = {"batches": job.batches}
        if job.book is not None:
            more |= {"budget_usd": job.book.limit_nano / NANO, "spent_usd": job.book.spent_nano / NANO}
        if job.paused is not None:
            more |= {"paused": job.paused.reason, "paused_message": str(job.paused)}
        elif not job.is_stopped and row.state in {"queued", "running"}:
            more |= {"state": row.state, "rate_per_second": self._rate, "eta_seconds": figures["eta_seconds"]}
        elif row.state in {"queued", "running"}:
            more["state"] = "stalled"
        # A stopped run waits for nothing but the calls that are under way.
        return waiting(status_of(row, **more), None if job.is_stopped else job.wait)


@contextlib.contextmanager
def quiet_logs(settings: Settings) -> Iterator[None]:
    is_asked_for = settings.is_set("logging.level") or os.environ.get("THEMES_DEBUG")
    levels = {} if is_asked_for else {"themes": logging.WARNING, "themes.chunks": logging.ERROR}
    before = {name: logging.getLogger(name).level for name in levels}
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
