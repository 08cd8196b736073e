"""The seven optimisations of `performance_optimization`, each with what it brought in one job.

They are the systems that the settings' section can turn on or size (DESIGN section 8): the connection pool, the shared
cache, work stealing, streaming, batched writes, compression, and asking less (equal prompts asked once, themes in
batches). What is told is counted or measured in this job; where nothing was, that is said.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tasks.messages import Usage
from tasks.texts import count
from workers.observe.format import size, time
from workers.report.measured import Measured, mean
from workers.results.queries.job_stats import JobStats

NOT_MEASURED: Final = "not measured: profiling was off, or its numbers are gone"


class Optimisation(msgspec.Struct, frozen=True):
    """One of the seven. `is_on` is None where nobody knows how it was set."""

    name: str
    setting: str
    is_on: bool | None
    brought: str
    #: How much of what it could touch it did, 0-1; None where that says nothing.
    share: float | None = None


def optimisations(
    usage: Usage, account: JobStats, m: Measured | None, sums: Mapping[str, float], facts: Mapping[str, Any]
) -> list[Optimisation]:
    """All seven, in the order of the settings."""
    return [
        _pool(m, sums, facts),
        _cache(usage, m, facts),
        _stealing(sums, facts, is_measured=m is not None),
        _streaming(account, facts),
        _batches(m, sums, facts),
        _compression(usage, facts),
        _asking_less(usage, account, facts),
    ]


def _is_on(facts: Mapping[str, Any], name: str) -> bool | None:
    found = facts.get(f"performance_optimization.{name}", facts.get(name))
    return None if found is None else bool(found)


def _pool(m: Measured | None, sums: Mapping[str, float], facts: Mapping[str, Any]) -> Optimisation:
    name, setting = "Connection pool", "llm_connection_pool_size"
    size_set = facts.get(f"performance_optimization.{setting}", facts.get(setting))
    is_on = None if size_set is None else float(size_set) > 1
    if m is None or not m.calls:
        return Optimisation(name, setting, is_on, "nothing to gain here: no call was made" if m else NOT_MEASURED)
    words = f"{m.connections_busy:.1f} calls at once on average"
    opened, reused = sums.get("connections_opened", 0.0), sums.get("connections_reused", 0.0)
    share = None
    if opened + reused:
        share = reused / (opened + reused)
        words += f"; {reused:,.0f} of {count(round(opened + reused), 'request')} went over a connection "
        words += "that was open already"
        if (connect := m.span("llm.connect")).count:
            words += f", which saved {time(reused * mean(connect))} of connecting"
    return Optimisation(name, setting, is_on, words, share)


def _cache(usage: Usage, m: Measured | None, facts: Mapping[str, Any]) -> Optimisation:
    name, setting = "Shared cache", "enable_persistent_cache"
    is_on = _is_on(facts, setting)
    looked = usage.cache_hits + usage.cache_misses
    if not usage.cache_hits:
        words = "nothing to gain here: no prompt had been answered before" if is_on is not False else "off"
        return Optimisation(name, setting, is_on, words, 0.0 if looked else None)
    words = f"{count(usage.cache_hits, 'call')} not made"
    if m and m.hold_seconds:
        words += f", {time(usage.cache_hits * m.hold_seconds)} of waiting for the LLM"
    if is_on is False:
        words += " (by the memory of each process alone)"
    return Optimisation(name, setting, is_on, words, usage.cache_hits / looked if looked else 1.0)


def _stealing(sums: Mapping[str, float], facts: Mapping[str, Any], *, is_measured: bool) -> Optimisation:
    name, setting = "Work stealing", "enable_work_stealing"
    is_on = _is_on(facts, setting)
    executed, stolen, shared = (sums.get(key, 0.0) for key in ("executed", "stolen", "shared"))
    if is_on is False:
        return Optimisation(name, setting, is_on, "off")
    if not is_measured or not executed:
        return Optimisation(name, setting, is_on, NOT_MEASURED)
    if not stolen and not shared:
        return Optimisation(name, setting, is_on, "nothing to gain here: every lane had work of its own", 0.0)
    words = f"{stolen:,.0f} of {count(round(executed), 'destination')} taken over by a lane that was free"
    if shared:
        words += f"; {shared:,.0f} were given to other workers"
    return Optimisation(name, setting, is_on, words, min(1.0, (stolen + shared) / executed))


def _streaming(account: JobStats, facts: Mapping[str, Any]) -> Optimisation:
    name, setting = "Streaming", "enable_streaming_results"
    is_on = _is_on(facts, setting)
    if is_on is False:
        return Optimisation(name, setting, is_on, "off: no events; the rows were in the database all the same")
    if account.first_at is None or not account.seconds:
        return Optimisation(name, setting, is_on, "nothing to gain here: no destination has come to an end")
    first = max(0.0, account.first_at - account.started_at)
    words = f"the first result was there after {time(first)}, the whole job took {time(account.seconds)}"
    return Optimisation(name, setting, is_on, words, max(0.0, 1 - first / account.seconds))


def _batches(m: Measured | None, sums: Mapping[str, float], facts: Mapping[str, Any]) -> Optimisation:
    name, setting = "Batched writes", "database_batch_size"
    size_set = facts.get(f"performance_optimization.{setting}", facts.get(setting))
    is_on = None if size_set is None else float(size_set) > 1
    batches, rows = sums.get("batches", 0.0), sums.get("rows", 0.0)
    if m is None or not batches:
        return Optimisation(name, setting, is_on, NOT_MEASURED)
    results = sums.get("results", 0.0)
    words = f"{count(round(results), 'result')} in {count(round(batches), 'commit')}"
    words += f", {count(round(rows / batches), 'row')} a commit"
    if (commits := m.span("db.commit")).count:
        words += f", {time(mean(commits))} each"
    return Optimisation(name, setting, is_on, words)


def _compression(usage: Usage, facts: Mapping[str, Any]) -> Optimisation:
    name, setting = "Compression", "enable_result_compression"
    is_on = _is_on(facts, setting)
    if is_on is False:
        return Optimisation(name, setting, is_on, "off")
    if not usage.bytes_raw:
        return Optimisation(name, setting, is_on, "nothing to gain here: nothing was stored in the cache")
    saved = usage.bytes_raw - usage.bytes_stored
    words = (
        f"{size(usage.bytes_raw)} of answers took {size(usage.bytes_stored)} in the cache "
        f"({usage.bytes_raw / max(1, usage.bytes_stored):.1f} times smaller)"
    )
    return Optimisation(name, setting, is_on, words, max(0.0, saved / usage.bytes_raw))


def _asking_less(usage: Usage, account: JobStats, facts: Mapping[str, Any]) -> Optimisation:
    name, setting = "Asking less", "enable_intelligent_batching"
    is_on = _is_on(facts, setting)
    answers = usage.llm_calls + usage.cache_hits + usage.coalesced
    if not answers:
        return Optimisation(name, setting, is_on, "nothing to gain here: nothing was asked")
    profiles = max((stage.profiles for stage in account.stages), default=0)
    words = (
        f"{count(usage.coalesced, 'call')} not made because an equal one was under way"
        if usage.coalesced
        else "no two equal prompts were under way at once"
    )
    if profiles and account.stages:
        words += f"; {answers / profiles:.1f} answers a profile, for {count(len(account.stages), 'stage')}"
    return Optimisation(name, setting, is_on, words, usage.coalesced / answers)
