"""What each of the seven optimisations of `performance_optimization` brought in one job."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tasks.messages import Usage
from tasks.texts import count
from workers.diagnosis.measured import Measured, mean
from workers.observe.format import duration, size
from workers.results.queries.job_stats import JobStats

NOT_MEASURED: Final = "not measured: profiling was off, or its numbers are gone"


class Optimisation(msgspec.Struct, frozen=True):
    """One of the seven. `is_on` is None where its setting is not known."""

    name: str
    setting: str
    is_on: bool | None
    brought: str
    #: How much of what it could touch it did, 0-1; None where that says nothing.
    share: float | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    usage: Usage
    account: JobStats
    m: Measured | None
    sums: Mapping[str, float]
    is_on: bool | None


#: In words what one of the seven brought, and `Optimisation.share`.
_Brought = tuple[str, float | None]


def optimisations(
    usage: Usage, account: JobStats, m: Measured | None, sums: Mapping[str, float], facts: Mapping[str, Any]
) -> list[Optimisation]:
    found = []
    for name, setting, brought_by in _SEVEN:
        is_on = _is_on(facts, setting)
        found.append(Optimisation(name, setting, is_on, *brought_by(_Job(usage, account, m, sums, is_on))))
    return found


def _is_on(facts: Mapping[str, Any], setting: str) -> bool | None:
    """Of a size, whether it is above 1."""
    found = facts.get(f"performance_optimization.{setting}", facts.get(setting))
    if found is None:
        return None
    return bool(found) if setting.startswith("enable_") else float(found) > 1


def _pool(job: _Job) -> _Brought:
    if job.m is None or not job.m.calls:
        return "nothing to gain here: no call was made" if job.m else NOT_MEASURED, None
    words = f"{job.m.connections_busy:.1f} calls at once on average"
    opened, reused = job.sums.get("connections_opened", 0.0), job.sums.get("connections_reused", 0.0)
    if not opened + reused:
        return words, None
    words += (
        f"; {reused:,.0f} of {count(round(opened + reused), 'request')} went over a connection that was open already"
    )
    if (connect := job.m.span("llm.connect")).count:
        words += f", which saved {duration(reused * mean(connect))} of connecting"
    return words, reused / (opened + reused)


def _cache(job: _Job) -> _Brought:
    usage = job.usage
    looked = usage.cache_hits + usage.cache_misses
    if not usage.cache_hits:
        words = "nothing to gain here: no prompt had been answered before" if job.is_on is not False else "off"
        return words, 0.0 if looked else None
    words = f"{count(usage.cache_hits, 'call')} not made"
    if job.m and job.m.hold_seconds:
        words += f", {duration(usage.cache_hits * job.m.hold_seconds)} of waiting for the LLM"
    if job.is_on is False:
        words += " (by the memory of each process alone)"
    return words, usage.cache_hits / looked if looked else 1.0


def _stealing(job: _Job) -> _Brought:
    executed, stolen, shared = (job.sums.get(key, 0.0) for key in ("executed", "stolen", "shared"))
    if job.is_on is False:
        return "off", None
    if job.m is None or not executed:
        return NOT_MEASURED, None
    if not stolen and not shared:
        return "nothing to gain here: every lane had work of its own", 0.0
    words = f"{stolen:,.0f} of {count(round(executed), 'destination')} taken over by a lane that was free"
    if shared:
        words += f"; {shared:,.0f} were given to other workers"
    return words, min(1.0, (stolen + shared) / executed)


def _streaming(job: _Job) -> _Brought:
    account = job.account
    if job.is_on is False:
        return "off: no events; the rows were in the database all the same", None
    if account.first_at is None or not account.seconds:
        return "nothing to gain here: no destination has come to an end", None
    first = max(0.0, account.first_at - account.started_at)
    words = f"the first result was there after {duration(first)}, the whole job took {duration(account.seconds)}"
    return words, max(0.0, 1 - first / account.seconds)


def _batches(job: _Job) -> _Brought:
    batches, rows, results = (job.sums.get(key, 0.0) for key in ("batches", "rows", "results"))
    if job.m is None or not batches:
        return NOT_MEASURED, None
    words = f"{count(round(results), 'result')} in {count(round(batches), 'commit')}"
    words += f", {count(round(rows / batches), 'row')} a commit"
    if (commits := job.m.span("db.commit")).count:
        words += f", {duration(mean(commits))} each"
    return words, None


def _compression(job: _Job) -> _Brought:
    raw, stored = job.usage.bytes_raw, job.usage.bytes_stored
    if job.is_on is False:
        return "off", None
    if not raw:
        return "nothing to gain here: nothing was stored in the cache", None
    smaller = f"({raw / max(1, stored):.1f} times smaller)"
    return f"{size(raw)} of answers took {size(stored)} in the cache {smaller}", max(0.0, (raw - stored) / raw)


def _asking_less(job: _Job) -> _Brought:
    usage, stages = job.usage, job.account.stages
    answers = usage.llm_calls + usage.cache_hits + usage.coalesced
    if not answers:
        return "nothing to gain here: nothing was asked", None
    words = "no two equal prompts were under way at once"
    if usage.coalesced:
        words = f"{count(usage.coalesced, 'call')} not made because an equal one was under way"
    if profiles := max((stage.profiles for stage in stages), default=0):
        words += f"; {answers / profiles:.1f} answers a profile, for {count(len(stages), 'stage')}"
    return words, usage.coalesced / answers


#: Name, setting and what it brought, in the order of the settings.
_SEVEN: Final[tuple[tuple[str, str, Callable[[_Job], _Brought]], ...]] = (
    ("Connection pool", "llm_connection_pool_size", _pool),
    ("Shared cache", "enable_persistent_cache", _cache),
    ("Work stealing", "enable_work_stealing", _stealing),
    ("Streaming", "enable_streaming_results", _streaming),
    ("Batched writes", "database_batch_size", _batches),
    ("Compression", "enable_result_compression", _compression),
    ("Asking less", "enable_intelligent_batching", _asking_less),
)
