"""A job's report as plain values, for a page, a terminal or JSON.

Counts come from the database and are exact; times are measured (`JobMeasurements`), and may lack the last second of a
killed process. What is not known is None, and `notes` says why.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from tasks.jobs.registry import JobStatus
from tasks.messages import Usage
from tasks.texts import count
from workers.diagnosis import bottleneck
from workers.diagnosis.finding import NAMES, Finding
from workers.diagnosis.findings import findings_of, measured_of
from workers.diagnosis.measured import OUTSIDE, WEB, lane_seconds
from workers.diagnosis.verdict import Pulse, Verdict, of_findings, of_job
from workers.observe.batch_use import BatchUse, use_of
from workers.observe.format import dollars
from workers.observe.measurements import HOPS, WHOLES, JobMeasurements, ProcessMeasurements
from workers.observe.metrics import Histogram
from workers.report.optimisations import Optimisation, optimisations
from workers.results.database.rows import JobRow
from workers.results.queries.job_stats import BATCHES, JobStats, WorkerRow

SLOWEST: Final = 10
#: Part by which what servers say and the price lists may differ before it is told.
TOLD_DIFFERENCE: Final = 0.001


class Hop(msgspec.Struct, frozen=True):
    """One hop of the way: its durations in ms, and its share of the time of all prompts."""

    name: str
    words: str
    place: Literal["lane", "outside", "whole"]
    count: int
    total_seconds: float
    #: Of all hops in lanes; None outside of them.
    share: float | None
    p50_ms: float
    p95_ms: float
    p99_ms: float


class Saving(msgspec.Struct, frozen=True):
    """What was not asked. Tokens and US dollars are None where they are not known."""

    by: Literal["memory", "cache", "coalesced"]
    words: str
    calls: int
    tokens: int | None
    usd: float | None


class Slow(msgspec.Struct, frozen=True):
    """One of the slowest destinations, and where its time went: shares of its prompts' time, by hop."""

    destination_id: str
    name: str
    seconds: float
    outcome: str
    calls: int | None
    worker: str
    shares: dict[str, float]


class ProcessLine(msgspec.Struct, frozen=True):
    """A worker process: how busy it was while it had work of the job. None where it was not measured."""

    name: str
    runs: int
    calls: int
    lanes_busy: float | None = None
    lanes: float | None = None
    pool_busy: float | None = None
    pool: float | None = None
    cpu_cores: float | None = None
    rss_bytes: float | None = None
    threads: float | None = None
    stolen: float | None = None


class Capacity(msgspec.Struct, frozen=True):
    resource: str
    name: str
    per_second: float
    words: str


class JobReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """All of it. Times of day are seconds since 1970, UTC."""

    job: dict[str, Any]
    made_at: float
    seconds: float
    destinations_per_second: float
    calls_per_second: float
    #: Destinations a second while workers had work of the job, as measured: what capacities are compared with.
    working_rate: float
    #: Of all prompts, those that needed no call; None before the first.
    hit_rate: float | None
    usage: Usage
    account: JobStats
    hops: list[Hop]
    savings: list[Saving]
    optimisations: list[Optimisation]
    #: What limits it now, or limited it; in the same words as everywhere.
    verdict: Verdict
    findings: list[Finding]
    capacities: list[Capacity]
    processes: list[ProcessLine]
    slowest: list[Slow]
    facts: dict[str, Any]
    is_profiled: bool
    notes: list[str]
    #: What it bought in batches; left out where it had none.
    batches: BatchUse | None = None

    def json(self) -> str:
        return msgspec.json.encode(self).decode()


def report_of(
    status: JobStatus,
    row: JobRow,
    account: JobStats,
    picture: JobMeasurements,
    *,
    settings: Mapping[str, Any],
    alive: int | None = None,
    pulse: Pulse | None = None,
    statements: Mapping[str, Mapping[str, float]] | None = None,
    notes: Sequence[str] = (),
    now: float | None = None,
) -> JobReport:
    """Put a report together.

    `settings` are the reader's, for what no part says; `alive` and `pulse` are None when Redis cannot be asked.
    """
    m = measured_of(picture, row, account)
    facts = {**settings, **(m.facts if m else {})}
    seconds, usage = account.seconds, row.usage
    findings = findings_of(status, account, picture, m, alive=alive, statements=statements or {})
    answers = usage.llm_calls + usage.cache_hits + usage.coalesced
    return JobReport(
        job=status.fields(),
        made_at=time.time() if now is None else now,
        seconds=round(seconds, 3),
        destinations_per_second=round(row.finished / seconds, 4) if seconds else 0.0,
        calls_per_second=round(usage.llm_calls / seconds, 4) if seconds else 0.0,
        working_rate=round(m.rate, 4) if m else 0.0,
        hit_rate=(usage.cache_hits + usage.coalesced) / answers if answers else None,
        usage=usage,
        account=account,
        hops=_hops(picture),
        savings=_savings(usage),
        optimisations=optimisations(usage, account, m, picture.sums, facts),
        verdict=of_findings(findings) if pulse is None or status.is_final else of_job(status, pulse),
        findings=findings,
        capacities=[
            Capacity(each.resource, NAMES[each.resource], round(each.rate, 4), each.words)
            for each in (bottleneck.bounds(m) if m else [])
        ],
        processes=_processes(account, picture),
        slowest=_slowest(account, picture),
        facts=dict(sorted(facts.items())),
        is_profiled=bool(picture.workers),
        notes=[*notes, *_only(status), *_notes(row, picture, account)],
        batches=use_of(picture),
    )


def _hops(picture: JobMeasurements) -> list[Hop]:
    """What was measured, in the order of the way; last, by its name, what we have no words for."""
    inside = sum(lane_seconds(picture.spans).values())
    known = {**HOPS, **WHOLES, WEB: "looking for evidence on the web"}
    found = []
    for name, words in {**known, **{name: name for name in sorted(picture.spans) if name not in known}}.items():
        span = picture.spans.get(name)
        if span is None or not span.count:
            continue
        place: Literal["lane", "outside", "whole"] = (
            "outside" if name in OUTSIDE else "lane" if name in HOPS else "whole"
        )
        share = span.total / inside if place == "lane" and inside else None
        found.append(Hop(name, words, place, span.count, round(span.total, 6), share, *_quantiles(span)))
    return found


def _quantiles(span: Histogram) -> tuple[float, float, float]:
    p50, p95, p99 = (round(span.quantile(share) * 1000, 3) for share in (0.5, 0.95, 0.99))
    return p50, p95, p99


def _savings(usage: Usage) -> list[Saving]:
    tokens = usage.saved_prompt_tokens + usage.saved_completion_tokens
    per_call = (usage.prompt_tokens + usage.completion_tokens) / usage.llm_calls if usage.llm_calls else None
    per_call_usd = usage.cost_usd / usage.llm_calls if usage.llm_calls and usage.cost_usd is not None else None
    together = round(per_call * usage.coalesced) if per_call is not None else None
    cost = per_call_usd * usage.coalesced if per_call_usd is not None else None
    return [
        Saving("cache", "answered before, by the cache", usage.cache_hits, tokens, usage.saved_usd),
        Saving("memory", "of these, out of a worker's own memory", usage.memory_hits, None, None),
        Saving(
            "coalesced", "asked once for several, at the mean of a call", usage.coalesced,
            0 if not usage.coalesced else together, 0.0 if not usage.coalesced else cost,
        ),
    ]  # fmt: skip


def _processes(account: JobStats, picture: JobMeasurements) -> list[ProcessLine]:
    """Workers by the database, with what their processes have measured; one that was restarted is added up."""
    parts: dict[str, list[ProcessMeasurements]] = {}
    for part in picture.workers:
        parts.setdefault(part.name, []).append(part)
    done = {each.worker: each for each in account.workers}
    return [_process(name, parts.get(name, []), done.get(name)) for name in sorted({*parts, *done})]


def _process(name: str, parts: Sequence[ProcessMeasurements], done: WorkerRow | None) -> ProcessLine:
    runs, calls = (done.runs, done.llm_calls) if done else (0, 0)
    sums: dict[str, float] = {}
    for part in parts:
        for key, amount in part.sums.items():
            sums[key] = sums.get(key, 0.0) + amount
    held = sums.get("held_seconds", 0.0)
    if not held:
        return ProcessLine(name, runs, calls)

    def mean(key: str) -> float | None:
        return round(sums[key] / held, 3) if key in sums else None

    def peak(key: str) -> float | None:
        return max((part.peaks[key] for part in parts if key in part.peaks), default=None)

    return ProcessLine(
        name, runs, calls, mean("lane_busy_seconds"), mean("lane_seconds"), mean("pool_busy_seconds"),
        mean("pool_seconds"), mean("cpu_seconds"), peak("rss_bytes"), peak("threads"), sums.get("stolen"),
    )  # fmt: skip


def _slowest(account: JobStats, picture: JobMeasurements) -> list[Slow]:
    """The slowest runs by the database, each with its breakdown where a process has kept it."""
    kept = {(slow.destination_id, round(slow.elapsed_ms)): slow for slow in picture.slowest}
    by_id = {slow.destination_id: slow for slow in reversed(picture.slowest)}
    found = []
    for run in account.slowest[:SLOWEST]:
        slow = kept.get((run.destination_id, round(run.elapsed_ms))) or by_id.get(run.destination_id)
        spans = {name: amount for name, amount in (slow.spans if slow else {}).items() if name in HOPS and amount > 0}
        spans = {name: amount for name, amount in spans.items() if name not in OUTSIDE}
        whole = sum(spans.values())
        shares = {name: round(spans[name] / whole, 4) for name in HOPS if name in spans} if whole else {}
        label = f"{run.name}, {run.country}" if run.country else run.name
        found.append(
            Slow(run.destination_id, label, run.elapsed_ms / 1000, run.outcome, run.llm_calls, run.worker, shares)
        )  # fmt: skip
    return found


def _only(status: JobStatus) -> list[str]:
    fields = ", ".join(status.only_fields)
    return [f"Of each profile only these fields were asked: {fields}."] if fields else []


def _notes(row: JobRow, picture: JobMeasurements, account: JobStats) -> list[str]:
    notes = []
    if not picture.workers:
        notes.append(
            "Nothing was measured, or it is gone: profiling was off (enable_performance_profiling), or the job is too "
            "old. Counts are exact all the same; where the time went is not known."
        )
    elif {each.worker for each in account.workers} - {part.name for part in picture.workers} - {BATCHES}:
        notes.append("Some workers have left no measurements; shares and waits are those of the others.")
    if row.usage.estimated_calls:
        notes.append(
            f"The server did not count the tokens of {count(row.usage.estimated_calls, 'call')}: estimated by length."
        )
    if row.usage.cost_usd is None:
        notes.append("A model has no price (llm.prices), so the cost is not known.")
    elif row.usage.listed_usd and abs(row.usage.cost_usd / row.usage.listed_usd - 1) > TOLD_DIFFERENCE:
        by = row.usage.cost_usd / row.usage.listed_usd - 1
        notes.append(
            f"Servers told what calls cost, {dollars(row.usage.cost_usd)} with all others: {by:+.1%} beside the "
            f"{dollars(row.usage.listed_usd)} of the price lists (`themes prices`)."
        )
    if row.usage.tier_saved_usd:
        saved = row.usage.tier_saved_usd
        words = f"saved {dollars(saved)}" if saved > 0 else f"cost {dollars(-saved)} more"
        notes.append(f"Calls at other service tiers than standard {words}, by the price lists.")
    if account.dead_letters:
        notes.append(f"{count(account.dead_letters, 'entry')} of this job could not be stored: see dead_letters.")
    return notes
