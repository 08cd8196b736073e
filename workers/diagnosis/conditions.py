"""What holds a job up beside its resources: no worker has it, its last destinations are late, it fails."""

from collections.abc import Mapping, Sequence
from typing import Final

from tasks.jobs.pauses import format_paused, resume_command
from tasks.jobs.registry import JobStatus
from tasks.texts import count
from workers.diagnosis.finding import Finding, Resource
from workers.diagnosis.troubles import DATABASE_ADVICE
from workers.diagnosis.verdict import BATCH_ADVICE
from workers.observe.batch_use import use_of
from workers.observe.format import duration, size
from workers.observe.measurements import JobMeasurements, ProcessMeasurements
from workers.results.queries.job_stats import JobStats, Point

#: Share of the job's time from which on a gap or a tail is named.
NAMED_SHARE: Final = 0.25
#: Share of the destinations that make up the tail.
TAIL: Final = 0.1
#: Seconds below which a job is too short to have a tail or a gap.
SHORT_SECONDS: Final = 2.0
#: Share of failed destinations from which on they are named.
FAILED_SHARE: Final = 0.05
#: Hours that growth must have lasted, and the share of the memory that it must have added.
GROWTH_HOURS: Final = 0.5
GROWTH_SHARE: Final = 0.15
#: Milliseconds of a statement's mean or slowest run from which on it is called slow.
SLOW_MEAN_MS: Final = 100.0
SLOW_RUN_MS: Final = 500.0


def conditions(
    status: JobStatus,
    account: JobStats,
    picture: JobMeasurements,
    *,
    alive: int | None,
    statements: Mapping[str, Mapping[str, float]],
) -> list[Finding]:
    """What precedes any bottleneck, the most pressing first; `alive` is None where Redis cannot be asked."""
    standing = _standing(status, alive)
    is_waiting = standing is not None and standing.resource == "batches"
    batches = None if is_waiting else _batches(account, picture)
    # While a provider has the questions lanes are idle, and nothing is wrong.
    idle = () if is_waiting or batches else (_gaps(account), _tail(account))
    found = [
        standing,
        batches,
        _failures(status, account),
        _consumer(account, status),
        *idle,
        _statement(statements),
        _growth(picture.parts),
    ]
    return [each for each in found if each]


def _standing(status: JobStatus, alive: int | None) -> Finding | None:
    if status.is_final:
        return None
    if status.paused:
        return _held("work", format_paused(status), resume_command(status))
    if status.waiting_for:
        return _waiting(status)
    if alive == 0:
        left = count(max(0, status.total - status.done - status.failed), "destination")
        return _held("workers", f"no worker is alive; {left} waiting", "start one: themes worker (or themes up)")
    return None


def _waiting(status: JobStatus) -> Finding:
    evidence, kind = f"everything waits: {status.waiting_for}", status.wait.kind if status.wait else ""
    if kind == "batch" and status.batches:
        return _held("batches", status.batches.clause(), f"nothing is stuck: {BATCH_ADVICE}")
    if kind == "other":
        advice = "start a consumer (themes consumer), or see why it is slow: themes doctor"
        return _held("database", evidence, advice)
    advice = "bring the endpoint back, ask for a higher limit, or add another endpoint (llm.endpoints); the work "
    return _held("endpoint", evidence, f"{advice}goes on by itself")


def _held(resource: Resource, evidence: str, advice: str) -> Finding:
    return Finding(resource=resource, share=1.0, evidence=evidence, advice=advice)


def _failures(status: JobStatus, account: JobStats) -> Finding | None:
    ended = status.done + status.failed
    if not account.failures or not ended or status.failed < FAILED_SHARE * ended:
        return None
    kinds = ", ".join(f"{kind.error_class} in {kind.stage} ({kind.destinations})" for kind in account.failures[:3])
    return Finding(
        resource="endpoint", share=round(status.failed / ended, 4),
        evidence=f"{status.failed:,} of {count(ended, 'destination')} failed: {kinds}",
        advice=f"themes failures {status.job_id} has the messages; themes retry {status.job_id} asks again",
    )  # fmt: skip


def _consumer(account: JobStats, status: JobStatus) -> Finding | None:
    if not status.is_final or account.last_at is None or account.seconds < SHORT_SECONDS:
        return None
    late = account.ended_at - account.last_at
    share = late / account.seconds
    if status.state != "done" or share < NAMED_SHARE:
        return None
    return Finding(
        resource="database", share=round(share, 4),
        evidence=f"the last {duration(late)} of {duration(account.seconds)} went by after the last destination was "
        "made, until its row was durable",
        advice=DATABASE_ADVICE,
    )  # fmt: skip


def _batches(account: JobStats, picture: JobMeasurements) -> Finding | None:
    """The time in which a provider had batches of the job, where it is a good part of all of it."""
    use = use_of(picture)
    if use is None or use.seconds < NAMED_SHARE * account.seconds:
        return None
    return Finding(
        resource="batches", share=round(min(1.0, use.seconds / (account.seconds or 1.0)), 4),
        evidence=f"for {duration(use.seconds)} {use.endpoints} had batches of this job: "
        f"{count(round(use.sent), 'batch')}, {use.answered:,.0f} of {count(round(use.requests), 'request')} answered",
        advice=BATCH_ADVICE,
    )  # fmt: skip


def _gaps(account: JobStats) -> Finding | None:
    """Time in which nothing of the job was in work, between its first destination and its last."""
    within = [
        point for point in account.timeline if account.last_at and point.at < account.last_at - account.started_at
    ]
    idle = sum(point.seconds for point in within if point.in_work < 0.05)  # noqa: PLR2004  # next to nothing
    whole = sum(point.seconds for point in within)
    if whole < SHORT_SECONDS or idle < NAMED_SHARE * whole:
        return None
    return Finding(
        resource="work", share=round(idle / whole, 4),
        evidence=f"for {duration(idle)} of {duration(whole)} nothing of this job was in work: it was paused, waited "
        "behind other jobs, or no worker was there",
        advice="a higher --priority lets a job pass others; themes top shows the workers",
    )  # fmt: skip


def _tail(account: JobStats) -> Finding | None:
    """The last tenth of the destinations, when it takes much longer than a tenth and most of what worked is idle."""
    points = account.timeline
    total = sum(point.ended for point in points)
    if total < 1 / TAIL or account.seconds < SHORT_SECONDS:
        return None
    start = _reached(points, total * (1 - TAIL))
    last = max((point.at + point.seconds for point in points if point.ended), default=0.0)
    if last <= 0 or last - start < NAMED_SHARE * last:
        return None
    before = max((point.in_work for point in points if point.at < start), default=0.0)
    after = [point.in_work for point in points if start <= point.at < last]
    if not after or sum(after) / len(after) > before / 2:
        return None
    gain = last / (start / (1 - TAIL)) if start else None
    slow = account.slowest[0] if account.slowest else None
    named = f"; the slowest, {slow.name}, took {duration(slow.elapsed_ms / 1000)}" if slow else ""
    return Finding(
        resource="tail", share=round((last - start) / last, 4), gain=round(gain, 2) if gain else None,
        evidence=f"the last {TAIL:.0%} of the destinations took {duration(last - start)} of {duration(last)}, with "
        f"{sum(after) / len(after):.1f} in work instead of {before:.1f}{named}",
        advice="look at what the slowest waited for (below); llm.hedge: true cuts late answers short, "
        "llm.request_timeout_seconds those that never come",
    )  # fmt: skip


def _reached(points: list[Point], count: float) -> float:
    seen = 0
    for point in points:
        seen += point.ended
        if seen >= count:
            return point.at + point.seconds
    return points[-1].at + points[-1].seconds if points else 0.0


def _statement(statements: Mapping[str, Mapping[str, float]]) -> Finding | None:
    slow = {
        name: row
        for name, row in statements.items()
        if row.get("p50_ms", 0) >= SLOW_MEAN_MS or row.get("slowest_ms", 0) >= SLOW_RUN_MS
    }
    if not slow:
        return None
    name = max(slow, key=lambda each: slow[each].get("p50_ms", 0) * slow[each].get("count", 0))
    row = slow[name]
    return Finding(
        resource="database", share=0.0,
        evidence=f"the statement {name!r} is slow: {duration(row['p50_ms'] / 1000)} median, "
        f"{duration(row['slowest_ms'] / 1000)} at worst, with {row['slowest_rows']:.0f} rows, in "
        f"{row['count']:.0f} runs since the consumer started",
        advice="look for a trigger or an index of your own on its table, for what holds the database, and for a "
        "slow disk",
    )  # fmt: skip


def _growth(parts: Sequence[ProcessMeasurements]) -> Finding | None:
    """Memory that grew by a good part of itself, over a time in which a start and its caches are long over."""
    grown: list[str] = []
    for part in parts:
        hourly, rss = part.peaks.get("rss_growth_bytes_per_hour", 0.0), part.peaks.get("rss_bytes", 0.0)
        hours = (part.until - part.since) / 3600
        if hours >= GROWTH_HOURS and hourly * hours > GROWTH_SHARE * rss:
            grown.append(f"{part.role} {part.name} by {size(hourly)} an hour (peak {size(rss)})")
    if not grown:
        return None
    return Finding(
        resource="memory", share=0.0, evidence=f"memory may grow: {', '.join(grown)}",
        advice="themes worker-memory start, and after some minutes compare, names the lines of code that grow",
    )  # fmt: skip
