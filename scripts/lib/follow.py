"""Follow a job until it ends: its events, and what a terminal shows of them."""

import time
from collections.abc import Iterator
from typing import Any, Final

from redis import ConnectionError as RedisConnectionError
from redis import Redis
from redis import TimeoutError as RedisTimeoutError
from rich.console import Console
from rich.live import Live

from config.settings import Settings
from scripts.lib.job_view import LINE_SECONDS, Lines, View, is_drawn
from scripts.lib.job_words import exit_code, standstill, summary
from scripts.lib.live_verdict import LiveVerdict
from scripts.lib.partial import partial_lines
from scripts.lib.terminal import warn
from scripts.main import INTERRUPTED
from tasks import keys
from tasks.connection import text_of
from tasks.jobs import registry as jobs
from tasks.jobs.events import follow
from tasks.messages import Event

RECONNECT_SECONDS: Final = 1.0
#: Seconds between two pictures on a terminal: many events come at once where a job is watched late.
DRAW_SECONDS: Final = 0.1


def reliable_events(
    redis: Redis, job_id: str, settings: Settings, after: str = "0-0", *, tick_seconds: float | None = None
) -> Iterator[Event | None]:
    """A job's events, going on after the last one seen when Redis has been away; None after each `tick_seconds`."""
    position, is_away = after, False
    while True:
        try:
            for event in follow(job_id, after=position, timeout_seconds=tick_seconds, settings=settings, redis=redis):
                position, is_away = event.id or position, False
                yield event
            return
        except TimeoutError:
            yield None
        except (RedisConnectionError, RedisTimeoutError) as exc:
            if not is_away:
                warn(f"Redis does not answer, waiting for it: {exc}")
                is_away = True
            time.sleep(RECONNECT_SECONDS)


def last_event_id(redis: Redis, job_id: str) -> str:
    """The id of a job's newest event, from which on new ones are followed; 0-0 without any."""
    newest: Any = redis.xrevrange(keys.events(job_id), count=1)
    return text_of(newest[0][0]) if newest else "0-0"


def follow_to_end(
    redis: Redis, job_id: str, settings: Settings, *, after: str = "0-0", is_partial_failure: bool = False
) -> int:
    """Show a job on standard error until it ends or stays paused, or until Ctrl-C; returns the exit code."""
    view = View()
    try:
        events = reliable_events(redis, job_id, settings, after, tick_seconds=LINE_SECONDS)
        _show(redis, job_id, view, events, LiveVerdict(settings, redis))
        view.print_failures(job_id)
        last = jobs.status(redis, job_id)
        for text in partial_lines(settings, last) if last.is_final else standstill(last):
            warn(text)
    except KeyboardInterrupt:
        return goes_on(job_id)
    return exit_code(last, is_partial_failure=is_partial_failure)


def goes_on(job_id: str) -> int:
    warn(f"job {job_id} goes on: `themes watch {job_id}` shows it again, `themes cancel {job_id}` stops it")
    return INTERRUPTED


def _show(redis: Redis, job_id: str, view: View, events: Iterator[Event | None], verdicts: LiveVerdict) -> None:
    console = Console(stderr=True)
    if jobs.status(redis, job_id).is_final:
        # What is over is not shown again as it went.
        for event in events:
            view.add(event)
        last = jobs.status(redis, job_id)
        console.print(view.render(last) if is_drawn(console) else summary(last), highlight=False, soft_wrap=True)
    elif is_drawn(console):
        _draw(console, redis, job_id, view, events, verdicts=verdicts)
    else:
        _print(console, redis, job_id, view, events, verdicts=verdicts)


def _draw(
    console: Console, redis: Redis, job_id: str, view: View, events: Iterator[Event | None], *, verdicts: LiveVerdict
) -> None:
    with Live(view.render(jobs.status(redis, job_id)), console=console, refresh_per_second=8) as live:
        drawn = time.monotonic()
        for event in events:
            view.add(event)
            if event is None or time.monotonic() - drawn >= DRAW_SECONDS:
                status = jobs.status(redis, job_id)
                view.verdict = verdicts.of(status).words
                live.update(view.render(status))
                drawn = time.monotonic()
        view.verdict = ""
        live.update(view.render(jobs.status(redis, job_id)))


def _print(
    console: Console, redis: Redis, job_id: str, view: View, events: Iterator[Event | None], *, verdicts: LiveVerdict
) -> None:
    lines, limit = Lines(), None
    for event in events:
        view.add(event)
        is_last = event is not None and event.type == "job.done"
        if not (lines.is_due() or is_last):
            continue
        status = jobs.status(redis, job_id)
        verdict = verdicts.of(status)
        for line in (lines.next(status), verdict.words if verdict.resource != limit else ""):
            if line:
                console.print(line, highlight=False, soft_wrap=True)
        limit = verdict.resource
