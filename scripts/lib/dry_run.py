"""What `enqueue --dry-run` and `run --dry-run` print: the forecast as a table for people, or as one JSON object."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from redis import Redis, RedisError
from rich.console import Console

from config.settings import Settings
from scripts.lib import reading
from scripts.lib.connections import connected
from scripts.lib.stored import database_if_any
from scripts.lib.terminal import columns as aligned
from scripts.lib.terminal import table, warn
from tasks.errors import DatabaseError, RedisUnavailableError
from tasks.identity import RULE
from tasks.inputs.reader import ReadReport
from tasks.jobs.budget import dollars
from tasks.messages import Destination
from tasks.texts import count, duration
from workers.local.state_file import look_up
from workers.pipeline.fields import THEMES
from workers.pipeline.forecast import Amount, Forecast, Forecaster, Sample, StageForecast, model_of
from workers.pipeline.prompts import stages_of
from workers.results.queries.earlier import Earlier, earlier_jobs


@dataclass(frozen=True, slots=True)
class FieldForecast:
    """What a field comes to for all destinations. `cost_usd` None: a model has no price."""

    field: str
    calls: float = 0.0
    cache_hits: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    cost_usd: float | None = 0.0

    def __add__(self, stage: StageForecast) -> "FieldForecast":
        here, more = self.cost_usd, stage.cost_usd
        return FieldForecast(
            self.field,
            round(self.calls + stage.calls, 1),
            round(self.cache_hits + stage.cache_hits, 1),
            self.prompt_tokens + stage.prompt_tokens,
            self.completion_tokens + stage.completion_tokens,
            None if here is None or more is None else round(here + more, 6),
        )


def dry_run(
    destinations: Iterable[Destination],
    report: ReadReport,
    settings: Settings,
    columns: Sequence[str] = (),
    *,
    use_cache: bool,
    as_json: bool,
    is_in_process: bool = False,
    fields: Sequence[str] = (),
    tier: str = "",
) -> int:
    """Read everything, forecast from a sample, print; the LLM is not asked. Redis may be away."""
    sample = Sample()
    for row in destinations:
        sample.add(row)
    is_in_process = is_in_process or not settings.redis.enabled
    made = partial(
        Forecaster, settings, use_cache=use_cache, columns=columns, fields=fields, tier=tier,
        earlier=asyncio.run(_earlier(settings)),
    )  # fmt: skip
    forecast = _forecast(sample, settings, made, is_in_process=is_in_process)
    if as_json:
        each = {"fields": [asdict(field) for field in by_field(forecast)]}
        print(json.dumps(reading.as_json(report) | asdict(forecast) | each, ensure_ascii=False))
    else:
        reading.show(report)
        _show(forecast, report)
    return 0


def _forecast(sample: Sample, settings: Settings, made: "partial[Forecaster]", *, is_in_process: bool) -> Forecast:
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
        warn(f"without what Redis knows: {exc}")
        return None


def by_field(forecast: Forecast) -> list[FieldForecast]:
    """What each field costs: those of its stages together."""
    found: dict[str, FieldForecast] = {}
    for stage in forecast.stages:
        found[stage.field] = found.get(stage.field, FieldForecast(stage.field)) + stage
    return sorted(found.values(), key=lambda one: one.field != THEMES)


def _field_lines(forecast: Forecast) -> list[str]:
    """What each field costs: for the job, and for each destination."""
    titles = ("field", "calls", "prompt tokens", "completion", "cost", "each: calls", "tokens", "cost")
    rows = []
    for field in by_field(forecast):
        usd, number = field.cost_usd, max(1, forecast.destinations)
        tokens = field.prompt_tokens + field.completion_tokens
        for_job, for_each = ("?", "?") if usd is None else (dollars(usd), dollars(usd / number))
        rows.append((
            field.field, f"{field.calls:,.0f}", f"{field.prompt_tokens:,.0f}", f"{field.completion_tokens:,.0f}",
            for_job, f"{field.calls / number:,.1f}", f"{tokens / number:,.0f}", for_each,
        ))  # fmt: skip
    return aligned(rows, titles=titles, right=range(1, len(titles)))


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
    for line in _field_lines(forecast):
        console.print(line, markup=False)
    if forecast.sample < forecast.destinations:
        console.print(
            f"from a sample of {count(forecast.sample, 'destination')}, evenly spread; ± is the standard error of that"
        )
    for said in forecast.basis:
        console.print(said)
    for note in forecast.notes:
        console.print(f"note: {note}")
