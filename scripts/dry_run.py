"""What `themes enqueue --dry-run` prints: the forecast as a table for people, or as one JSON object."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from redis import Redis, RedisError
from rich.console import Console
from rich.table import Table

from config.settings import Settings
from scripts import reading
from tasks.connection import check_server, connect, locate
from tasks.errors import RedisUnavailableError
from tasks.identity import RULE
from tasks.inputs.reader import ReadReport
from tasks.jobs.budget import dollars
from tasks.messages import Destination
from tasks.waits import duration
from workers.pipeline.forecast import Amount, Forecast, Forecaster, Sample


def dry_run(
    destinations: Iterable[Destination],
    report: ReadReport,
    settings: Settings,
    columns: Sequence[str] = (),
    *,
    use_cache: bool,
    as_json: bool,
) -> int:
    """Read everything, forecast from a sample, print; nothing is enqueued. Redis may be away."""
    sample = Sample()
    for row in destinations:
        sample.add(row)
    forecast = _forecast(sample, settings, columns, use_cache=use_cache)
    if as_json:
        print(json.dumps(reading.as_json(report) | asdict(forecast), ensure_ascii=False))
    else:
        reading.show(report)
        _show(forecast, report)
    return 0


def _forecast(sample: Sample, settings: Settings, columns: Sequence[str], *, use_cache: bool) -> Forecast:
    redis = _redis(settings)
    try:
        return Forecaster(settings, redis, use_cache=use_cache, columns=columns).forecast(sample)
    except RedisError:
        return Forecaster(settings, None, use_cache=use_cache, columns=columns).forecast(sample)


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
    read = f"{reading.count(forecast.destinations, 'destination')} ({reading.summary(report)})"
    console.print(f"{read}; nothing was enqueued", markup=False)
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
            f"from a sample of {forecast.sample} destinations, evenly spread; ± is the standard error of that"
        )
    for note in forecast.notes:
        console.print(f"note: {note}")
