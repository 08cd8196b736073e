"""What `enqueue --dry-run` and `run --dry-run` print: the forecast as a table for people, or as one JSON object."""

import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial

from redis import Redis, RedisError
from rich.console import Console
from rich.table import Table

from config.settings import Settings
from scripts import reading
from tasks.connection import check_server, connect, locate
from tasks.errors import DatabaseError, RedisUnavailableError
from tasks.identity import RULE
from tasks.inputs.reader import ReadReport
from tasks.jobs.budget import dollars
from tasks.messages import Destination
from tasks.texts import count
from tasks.waits import duration
from workers.local.state_file import look_up
from workers.pipeline.forecast import Amount, Forecast, Forecaster, Sample, model_of
from workers.pipeline.prompts import stages_of
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.queries.earlier import Earlier, earlier_jobs


def dry_run(
    destinations: Iterable[Destination],
    report: ReadReport,
    settings: Settings,
    columns: Sequence[str] = (),
    *,
    use_cache: bool,
    as_json: bool,
    is_in_process: bool = False,
) -> int:
    """Read everything, forecast from a sample, print; nothing is asked. Redis may be away.

    Of a job that is `is_in_process`, or that runs where there is to be no Redis, the state directory has the cache.
    """
    sample = Sample()
    for row in destinations:
        sample.add(row)
    is_in_process = is_in_process or not settings.redis.enabled
    forecast = _forecast(sample, settings, columns, use_cache=use_cache, is_in_process=is_in_process)
    if as_json:
        print(json.dumps(reading.as_json(report) | asdict(forecast), ensure_ascii=False))
    else:
        reading.show(report)
        _show(forecast, report)
    return 0


def _forecast(
    sample: Sample, settings: Settings, columns: Sequence[str], *, use_cache: bool, is_in_process: bool
) -> Forecast:
    made = partial(Forecaster, settings, use_cache=use_cache, columns=columns, earlier=asyncio.run(_earlier(settings)))
    if is_in_process:
        return made(None, cached=partial(look_up, settings.state_dir)).forecast(sample)
    try:
        return made(_redis(settings)).forecast(sample)
    except RedisError:
        return made(None).forecast(sample)


async def _earlier(settings: Settings) -> Earlier:
    """What earlier jobs have measured of the models that are set; nothing where there is no database to read."""
    store = AsyncDatabaseManager.from_settings(settings)
    try:
        if not store.exists():
            return Earlier()
        await store.open()
        models = {model for stage in stages_of(settings) if (model := model_of(settings, stage))}
        return await earlier_jobs(store, models)
    except DatabaseError as exc:
        print(f"themes: earlier jobs cannot be looked at: {exc}", file=sys.stderr)
        return Earlier()
    finally:
        await store.close()


def _redis(settings: Settings) -> Redis | None:
    redis = connect(locate(settings), socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    try:
        check_server(redis)
    except RedisUnavailableError as exc:
        print(f"themes: {exc}", file=sys.stderr)
        return None
    return redis


def _show(forecast: Forecast, report: ReadReport) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    read = f"{count(forecast.destinations, 'destination')} ({reading.summary(report)})"
    console.print(f"{read}; nothing was enqueued or asked", markup=False)
    console.print(RULE, markup=False)
    table = Table("", "expected", "±", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in ("calls", "cache_hits", "prompt_tokens", "completion_tokens"):
        amount: Amount = getattr(forecast, name)
        table.add_row(name.replace("_", " "), f"{amount.expected:,.0f}", f"{amount.plus_minus:,.0f}")
    cost = forecast.cost_usd
    table.add_row("cost", dollars(cost.expected) if cost else "unknown", dollars(cost.plus_minus) if cost else "")
    table.add_row("time", "unknown" if forecast.seconds is None else f"about {duration(forecast.seconds)}", "")
    console.print(table)
    if forecast.sample < forecast.destinations:
        console.print(
            f"from a sample of {count(forecast.sample, 'destination')}, evenly spread; ± is the standard error of that"
        )
    for said in forecast.basis:
        console.print(said)
    for note in forecast.notes:
        console.print(f"note: {note}")
