"""What `enqueue --dry-run` and `run --dry-run` print: the forecast as a table for people, or as one JSON object."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial

from redis import Redis, RedisError
from rich.console import Console

from config.settings import Settings
from scripts.lib import reading
from scripts.lib.connections import connected
from scripts.lib.stored import database_if_any
from scripts.lib.terminal import table, warn
from tasks.errors import DatabaseError, RedisUnavailableError
from tasks.identity import RULE
from tasks.inputs.reader import ReadReport
from tasks.jobs.budget import dollars
from tasks.messages import Destination
from tasks.texts import count, duration
from workers.local.state_file import look_up
from workers.pipeline.forecast import Amount, Forecast, Forecaster, Sample, model_of
from workers.pipeline.prompts import stages_of
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
    """Read everything, forecast from a sample, print; the LLM is not asked. Redis may be away."""
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
    try:
        async with database_if_any(settings) as store:
            models = {model for stage in stages_of(settings) if (model := model_of(settings, stage))}
            return Earlier() if store is None else await earlier_jobs(store, models)
    except DatabaseError as exc:
        warn(f"earlier jobs cannot be read: {exc}")
        return Earlier()


def _redis(settings: Settings) -> Redis | None:
    try:
        return connected(settings)
    except RedisUnavailableError as exc:
        warn(str(exc))
        return None


def _show(forecast: Forecast, report: ReadReport) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    read = f"{count(forecast.destinations, 'destination')} ({reading.summary(report)})"
    console.print(f"{read}; nothing was enqueued or asked", markup=False)
    console.print(RULE, markup=False)
    rows = table("", "expected", "±", right=slice(1, None))
    for name in ("calls", "cache_hits", "prompt_tokens", "completion_tokens"):
        amount: Amount = getattr(forecast, name)
        rows.add_row(name.replace("_", " "), f"{amount.expected:,.0f}", f"{amount.plus_minus:,.0f}")
    cost = forecast.cost_usd
    rows.add_row("cost", dollars(cost.expected) if cost else "unknown", dollars(cost.plus_minus) if cost else "")
    rows.add_row("time", "unknown" if forecast.seconds is None else f"about {duration(forecast.seconds)}", "")
    console.print(rows)
    if forecast.sample < forecast.destinations:
        console.print(
            f"from a sample of {count(forecast.sample, 'destination')}, evenly spread; ± is the standard error of that"
        )
    for said in forecast.basis:
        console.print(said)
    for note in forecast.notes:
        console.print(f"note: {note}")
