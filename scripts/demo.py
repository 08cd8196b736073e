"""`themes demo`: the whole engine on 25 destinations, from nothing, ending by itself."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click
from redis import Redis

import config
from config.settings import Settings
from scripts.lib.processes import Interrupted, interruptible
from scripts.lib.stack import WATCH_SECONDS, Stack, database_place, stack
from scripts.lib.terminal import say, width
from scripts.main import FILE, settings_from
from tasks.connection import connect
from tasks.inputs.reader import Reader
from tasks.jobs import registry as jobs
from tasks.jobs.short_ids import short_id
from tasks.queue.producer import enqueue
from tasks.texts import count, duration
from workers.observe.format import spread
from workers.observe.measurement_store import read_job_measurements
from workers.observe.measurements import JobMeasurements
from workers.observe.metrics import Histogram

DESTINATIONS: Final = Path(config.__path__[0]) / "destinations.csv"
#: Seconds that the workers' reports may take: they write one a second.
REPORT_SECONDS: Final = 3.0
WORKERS: Final = 2
#: Profiles that are shown at the end.
SHOWN_ROWS: Final = 5


@click.command(epilog="Example: themes demo --latency 50ms")
@click.option("--keep", is_flag=True, help="Leave the stack running until Ctrl-C.")
@click.option("--latency", metavar="SPEC", help="The sandbox's latency, for instance 50ms or lognormal:250ms:0.4.")
@click.argument("file", type=FILE, required=False)
def command(file: str | None, latency: str | None, *, keep: bool) -> int:
    """Run 25 destinations (or FILE) through Redis, workers, consumer and Flower, and show what came of it.

    With redis.enabled off (THEMES_ENV=conservative) all of it runs in this one process.
    """
    settings = settings_from()
    if not settings.redis.enabled:
        from scripts.lib.demo_local import demo

        if keep:
            raise click.UsageError("--keep keeps the stack; with redis.enabled off there is none")
        return demo(settings, file or str(DESTINATIONS), latency)
    began = time.monotonic()
    # A base URL is named on purpose; a key alone may just lie in the environment, and would cost money.
    sandbox = settings.llm.base_url is None
    code = 130
    with contextlib.suppress(Interrupted), interruptible(), stack(settings, sandbox=sandbox, latency=latency) as made:
        say(which_llm(settings, sandbox=sandbox))
        made.start_workers(WORKERS)
        redis = connect(made.redis_url, socket_timeout_seconds=settings.redis.socket_timeout_seconds)
        with Reader(file or DESTINATIONS) as reader:
            job = enqueue(reader, name="demo", settings=settings, redis=redis)
        made.start_others(dashboard=True)
        dashboard = f"http://{settings.dashboard.host}:{made.port}/jobs"
        say(f"starting Redis, {WORKERS} workers, consumer, dashboard at {dashboard} ...")
        made.wait_until_ready()
        say(f"the stack is up after {duration(time.monotonic() - began)}")
        code = _follow(made, redis, job)
        if made.port is not None:
            say(f"dashboard  {dashboard}{'' if keep else '  (ends now; --keep leaves it up)'}")
        if keep:
            say("Ctrl-C stops everything")
            while True:
                made.check()
                time.sleep(WATCH_SECONDS)
    return code


def which_llm(settings: Settings, *, sandbox: bool) -> str:
    if sandbox:
        return "LLM: the sandbox (set OPENAI_BASE_URL, OPENAI_API_KEY and THEMES_MODEL to use a real one)"
    return f"LLM: {settings.llm.model} at {settings.llm.base_url}"


def _follow(made: Stack, redis: Redis, job: jobs.Job) -> int:
    # Late: the workers start before this is imported.
    from scripts.lib.follow import follow_to_end

    settings = made.settings
    code = follow_to_end(redis, job.job_id, settings)
    status = jobs.status(redis, job.job_id)
    asyncio.run(show(settings, job.job_id))
    say_what_came_of_it(status, settings)
    say_where_the_time_went(_whole_picture(redis, status).spans)
    return code


async def show(settings: Settings, job_id: str) -> None:
    from scripts.lib.stored import job_in_database
    from scripts.results import lines_of

    async with job_in_database(settings, job_id) as (store, _):
        rows = [row async for row in store.profiles(job_id)]
    for line in lines_of(rows[:SHOWN_ROWS], width=width()):
        print(line, flush=True)
    if len(rows) > SHOWN_ROWS:
        say(f"{len(rows) - SHOWN_ROWS:,} more: themes results {short_id(job_id)}")


def say_what_came_of_it(status: jobs.JobStatus, settings: Settings) -> None:
    say(
        f"job {status.job_id}: {count(status.done, 'profile')}, {status.failed} failed in "
        f"{duration(status.seconds or 0.0)}, {count(status.llm_calls, 'LLM call')}, "
        f"{count(status.cache_hits, 'cache hit')}, {status.coalesced} coalesced"
    )
    if status.llm_calls == 0 and status.cache_hits:
        say("every answer came from the cache: nothing was asked, nothing was paid")
    say(f"database   {database_place(settings)}")


def say_where_the_time_went(spans: Mapping[str, Histogram]) -> None:
    for name, what in (("llm.call", "LLM calls"), ("llm.pool_wait", "waits for a connection")):
        if span := spans.get(name):
            say(f"{what}: {span.count:,}, {spread(span)}, total {duration(span.total)}")


def _whole_picture(redis: Redis, status: jobs.JobStatus) -> JobMeasurements:
    """The job's profile once every call is in it: the workers tell of their last ones a moment after its end."""
    deadline = time.monotonic() + REPORT_SECONDS
    while True:
        picture = read_job_measurements(redis, status.job_id)
        if picture.sums.get("llm.requests", 0) >= status.llm_calls or time.monotonic() > deadline:
            return picture
        time.sleep(WATCH_SECONDS)
