"""What bounds a job, how that is known, and what changing it would bring.

The lowest of the resources' capacities is the bottleneck; raising it helps until the next one (asymptotic bounds of
closed queueing networks: Denning & Buzen, "The Operational Analysis of Queueing Network Models", ACM Computing Surveys
10 (3), 1978; Lazowska, Zahorjan, Graham & Sevcik, "Quantitative System Performance", 1984, chapter 5). The demands come
from `measured`, by Little's law. A forecast assumes that an answer takes as long under more load.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from tasks.texts import count
from workers.observe.format import amount_of, plain, rounded, spread, time, times
from workers.report.measured import REFUSED, WEB, Measured, mean

Resource = Literal[
    "connections", "rate limit", "lanes", "cpu", "redis", "database", "work", "tail", "workers", "llm", "endpoint",
    "memory", "web", "unknown",
]  # fmt: skip
NAMES: Final[Mapping[str, str]] = {
    "connections": "LLM connections",
    "rate limit": "the rate limit",
    "lanes": "lanes",
    "cpu": "CPU of the worker processes",
    "redis": "Redis",
    "database": "the database",
    "work": "too little work",
    "tail": "the last destinations",
    "workers": "no worker",
    "llm": "the LLM's latency",
    "endpoint": "an LLM endpoint that fails",
    "memory": "memory that grows",
    "web": "evidence from the web",
    "unknown": "not known",
}
#: Calls and destinations below which nothing is forecast.
ENOUGH_CALLS: Final = 20
ENOUGH_DESTINATIONS: Final = 3
#: Share of a bound from which on it explains the rate.
EXPLAINS: Final = 0.55
#: Cores of one process from which on its CPU is what everything waits for: its loop is one thread.
FULL_CPU_CORES: Final = 0.8
#: Mean seconds that the event loop is late, from which on that is said.
LATE_SECONDS: Final = 0.05
#: Shares of the requests: refused for their number, failed.
REFUSED_SHARE: Final = 0.02
FAILED_SHARE: Final = 0.1
#: Batches that a result waits for, from which on it counts as queueing: a new one waits for that under way and its own.
BACKLOG: Final = 3.0
#: Share of a destination's time from which on a part of it is named.
NAMED_SHARE: Final = 0.3
#: A gain below this is within what repeats of a run differ by.
WORTH_IT: Final = 1.05
#: A change is forecast with so much more of the changed resource than the next bound needs: lines are never even.
HEADROOM: Final = 1.3


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    resource: Resource
    #: 0-1: how much of what this could carry is used, or how much of the time it takes.
    share: float
    evidence: str
    advice: str
    #: How many times as fast the job would go, and what would bound it then; None where that is not known.
    gain: float | None = None
    until: Resource | None = None
    #: The setting to change, its value and the new one.
    setting: str | None = None
    old: float | None = None
    new: float | None = None

    @property
    def name(self) -> str:
        return NAMES[self.resource]


@dataclass(frozen=True, slots=True)
class Bound:
    """Destinations a second that one resource could carry, and how much of it there is, in words."""

    resource: Resource
    rate: float
    words: str


def bounds(m: Measured) -> list[Bound]:
    """What each resource could carry, the lowest first. Only of resources whose demand was measured."""
    found: list[Bound] = []
    calls = m.calls_per_destination
    if calls and m.hold_seconds and m.connections:
        found.append(
            Bound("connections", m.connections / (calls * m.hold_seconds), amount_of(m.connections, "connection"))
        )
    if calls and (allowed := allowed_calls(m)):
        found.append(Bound("rate limit", allowed / calls, f"{allowed:.3g} requests/s"))
    if m.unqueued_seconds and m.lanes:
        found.append(Bound("lanes", m.lanes / m.unqueued_seconds, amount_of(m.lanes, "lane")))
    if m.unqueued_seconds and m.total:
        found.append(Bound("work", m.total / m.unqueued_seconds, count(m.total, "destination")))
    if m.cpu_cores and m.rate:
        found.append(Bound("cpu", m.rate / m.cpu_cores, count(m.workers, "process")))
    # A batch grows with the backlog, so time at the database says little until results queue for it.
    if m.database_share and m.rate and m.result_wait_seconds > BACKLOG * mean(m.span("db.commit")):
        found.append(Bound("database", m.rate / m.database_share, "one writer"))
    return sorted(found, key=lambda bound: bound.rate)


def allowed_calls(m: Measured) -> float | None:
    """Calls a second that the rate limits allow: what is set, or, where calls wait for a learnt one, what they got."""
    limits = []
    if per_minute := m.number("llm.requests_per_minute"):
        limits.append(per_minute / 60)
    if (tokens := m.number("llm.tokens_per_minute")) and (used := m.number("tokens_per_call")):
        limits.append(tokens / 60 / used)
    if not limits and (learnt := m.learnt_per_minute):
        limits.append(learnt / 60)
    if limits:
        return min(limits)
    waits = m.rate_wait_seconds > max(0.05, 0.2 * m.hold_seconds)
    if m.refusals > REFUSED_SHARE * max(1, m.requests) or waits:
        return m.call_rate
    return None


def diagnose(m: Measured) -> list[Finding]:
    """The measured bottleneck first, then what comes near; `conditions` (no worker, a pause) come before these."""
    troubles = [found for found in (_endpoint(m), _loop(m), _redis(m), _web(m)) if found]
    if m.calls < ENOUGH_CALLS or m.destinations < ENOUGH_DESTINATIONS or not m.seconds:
        return [*troubles, _too_little(m)] if m.calls else troubles
    known = bounds(m)
    found = [_of(m, bound, known) for bound in known if m.rate >= EXPLAINS * bound.rate or bound is known[0]]
    found = [each for each in found if each.resource != "database" or each.share > NAMED_SHARE]
    if database := _database(m):
        found = [database, *(each for each in found if each.resource != "database")]
    found.sort(key=lambda each: (-_urgency(each), -each.share))
    if not found or found[0].share < EXPLAINS:
        found.insert(0, _idle(m))
    return [*(each for each in troubles if each.resource == "endpoint"), *found, *_beside(m, troubles, found)]


def _urgency(finding: Finding) -> int:
    """A full process makes everything else look full: its calls are held while their answers wait to be read."""
    return int(finding.resource == "cpu" and finding.share >= FULL_CPU_CORES)


def _beside(m: Measured, troubles: Sequence[Finding], found: Sequence[Finding]) -> list[Finding]:
    named = {each.resource for each in found}
    beside = [each for each in troubles if each.resource != "endpoint" and each.resource not in named]
    llm = _llm(m)
    return [*beside, llm] if llm and found[0].resource in {"lanes", "work"} else beside


def _of(m: Measured, bound: Bound, known: Sequence[Bound]) -> Finding:
    others = [other for other in known if other.resource != bound.resource]
    following = min(others, key=lambda other: other.rate, default=None)
    evidence, change = _SPEAKERS[bound.resource](m, following.rate if following else m.rate)
    finding = Finding(
        resource=bound.resource, share=round(min(1.0, m.rate / bound.rate), 4), evidence=evidence, advice=change.words
    )  # fmt: skip
    if following is None or (change.setting is None and not change.is_forecast):
        return finding
    gain = following.rate / m.rate
    if gain < WORTH_IT:
        words = f"more would bring nothing by itself: {NAMES[following.resource]} ({following.words}) would bound it"
        return msgspec.structs.replace(finding, advice=words)
    limit = f"{NAMES[following.resource]} ({following.words})"
    if following.resource == "work":
        limit = f"all {following.words} are in work at once"
    forecast = f"would give {times(gain)} until {limit}"
    finding = msgspec.structs.replace(finding, gain=round(gain, 3), until=following.resource)
    if change.setting is None or change.old is None or change.new is None:
        return msgspec.structs.replace(finding, advice=f"{change.words} {forecast}")
    arrow = f"{change.setting} {plain(change.old)} -> {plain(change.new)}"
    return msgspec.structs.replace(
        finding, advice=f"{arrow}{change.words} {forecast}", setting=change.setting, old=change.old, new=change.new
    )


@dataclass(frozen=True, slots=True)
class Change:
    words: str = ""
    setting: str | None = None
    old: float | None = None
    new: float | None = None
    #: Whether doing what the words say lifts the bound.
    is_forecast: bool = False


def _connections(m: Measured, following: float) -> tuple[str, Change]:
    used = m.connections_busy / m.connections if m.connections else 0.0
    evidence = (
        f"the pool is {used:.0%} in use ({m.connections_busy:.1f} of {amount_of(m.connections, 'connection')}), a call "
        f"waits {time(m.pool_wait_seconds)} for one and keeps it {time(m.hold_seconds)}; "
        f"{m.connections_waiting:.1f} are in line"
    )
    setting = "performance_optimization.llm_connection_pool_size"
    old = m.number(setting) or (m.connections / m.workers if m.workers else None)
    if old is None or not m.connections:
        return evidence, Change()
    # A destination's calls come in rounds: on average is not enough.
    needed = following * m.calls_per_destination * m.hold_seconds * HEADROOM
    return evidence, Change("", setting, old, max(old + 1, rounded(old * needed / m.connections)))


def _rate_limit(m: Measured, following: float) -> tuple[str, Change]:
    setting = "llm.requests_per_minute"
    old = m.number(setting)
    tokens = m.number("llm.tokens_per_minute")
    waits = f"a call waits {time(m.rate_wait_seconds)} for its turn, {m.call_rate:.3g} calls/s go out"
    if m.refusals:
        waits += f", {m.refusals:,} of {count(m.requests, 'request')} refused (429)"
    if old is None and tokens is None:
        words = "a higher limit from the provider, or a second endpoint (llm.endpoints),"
        allowed = (m.learnt_per_minute or 0) / 60 or m.call_rate
        return f"the endpoint allows about {allowed:.3g} requests/s: {waits}", Change(words, is_forecast=True)
    if old is None:
        setting, old = "llm.tokens_per_minute", tokens
    evidence = f"{setting} is {plain(old)}: {waits}"
    assert old is not None  # noqa: S101  # one of the two is set
    new = max(old + 1, rounded(old * HEADROOM * following / m.rate))
    return evidence, Change(" (where the provider allows it)", setting, old, new)


def _lanes(m: Measured, following: float) -> tuple[str, Change]:
    used = m.lanes_busy / m.lanes if m.lanes else 0.0
    evidence = (
        f"{m.lanes_busy:.1f} of {amount_of(m.lanes, 'lane')} are busy ({used:.0%}) while "
        f"{m.connections_busy:.1f} of {amount_of(m.connections, 'connection')} are in use; a destination keeps its "
        f"lane {time(m.destination_seconds)}"
    )
    setting = "performance_optimization.worker_pool_size"
    old = m.number(setting) or (m.lanes / m.workers if m.workers else None)
    if old is None or not m.lanes:
        return evidence, Change()
    needed = following * m.unqueued_seconds * HEADROOM
    most = max(old + 1, m.total / max(1, m.workers))
    return evidence, Change("", setting, old, max(old + 1, rounded(min(old * needed / m.lanes, most))))


def _cpu(m: Measured, following: float) -> tuple[str, Change]:
    late = m.span("loop.lag")
    lag = f", their loop is late by {time(late.quantile(0.95))} in 5 of 100 looks" if late.count else ""
    evidence = (
        f"a worker process uses {m.cpu_cores:.2f} cores (the busiest {m.busiest_cpu_cores:.2f}) of the one that a "
        f"Python process can{lag}"
    )
    needed = max(m.workers + 1, math.ceil(m.workers * m.cpu_cores * following / m.rate))
    words = f"worker processes {m.workers} -> {needed}, on as many free cores (themes up --workers {needed}),"
    return evidence, Change(words, is_forecast=True)


def _work(m: Measured, _following: float) -> tuple[str, Change]:
    evidence = (
        f"{count(m.total, 'destination')} for {amount_of(m.lanes, 'lane')}, of which {m.lanes_busy:.1f} are busy on "
        f"average; one destination takes {time(m.destination_seconds)}"
    )
    return evidence, Change("nothing to tune: a larger job would use what is idle; this one waits for the LLM")


def _database_bound(m: Measured, _following: float) -> tuple[str, Change]:
    commits = m.span("db.commit")
    evidence = f"the consumer is at the database {m.database_share:.0%} of the time, {time(mean(commits))} a batch"
    return evidence, Change(DATABASE_ADVICE)


DATABASE_ADVICE: Final = (
    "look for other programs that write to or lock the database, for a slow disk (themes doctor); larger batches "
    "(database_batch_size) need fewer commits; PostgreSQL (DATABASE_URL) takes several consumers"
)
_SPEAKERS: Final = {
    "connections": _connections,
    "rate limit": _rate_limit,
    "lanes": _lanes,
    "cpu": _cpu,
    "work": _work,
    "database": _database_bound,
}


def _database(m: Measured) -> Finding | None:
    """Results that wait longer for the consumer than they took to be made, or a good second."""
    waits, commits = m.span("result.wait"), m.span("db.commit")
    wait = mean(waits)
    if not waits.count or wait < max(0.3, m.destination_seconds * 0.3):
        return None
    evidence = (
        f"a result waits {time(wait)} for the consumer (95 of 100 within {time(waits.quantile(0.95))}), a destination "
        f"is made in {time(m.destination_seconds)}; a batch takes {time(mean(commits))} "
        f"(the slowest {time(commits.largest)}), {commits.count} of them"
    )
    share = max(m.database_share, wait / (wait + m.destination_seconds))
    return Finding(resource="database", share=round(min(1.0, share), 4), evidence=evidence, advice=DATABASE_ADVICE)


def _llm(m: Measured) -> Finding | None:
    calls, first = m.span("llm.call"), m.span("llm.first_byte")
    if not calls.count or not m.destination_seconds:
        return None
    share = min(1.0, m.unqueued_seconds / m.destination_seconds) if m.pool_wait_seconds else 1.0
    slow = calls.quantile(0.95) > 3 * calls.quantile(0.5)  # a long tail
    evidence = f"a call takes {spread(calls)}"
    if first.count:
        evidence += f", to the first byte {time(mean(first))}"
    advice = "a faster model or endpoint for some stages (llm.roles)"
    if slow and not m.fact("llm.hedge"):
        advice += "; llm.hedge: true asks a second time where an answer is late, for up to 5 % more calls"
    return Finding(resource="llm", share=round(share, 4), evidence=evidence, advice=advice)


def _endpoint(m: Measured) -> Finding | None:
    failed = {name: number for name, number in m.errors.items() if name not in REFUSED}
    number = sum(failed.values())
    if number < FAILED_SHARE * max(1, m.requests):
        return None
    worst = max(failed, key=lambda name: failed[name])
    pauses = m.span("llm.backoff")
    evidence = f"{number:,} of {count(m.requests, 'request')} failed, most with {worst} ({failed[worst]})"
    if pauses.count:
        evidence += f"; pauses before new tries took {time(pauses.total)} in all"
    return Finding(
        resource="endpoint", share=round(min(1.0, number / max(1, m.requests)), 4), evidence=evidence,
        advice="see `themes failures JOB` and the endpoint's own logs; another one in llm.endpoints takes over at once",
    )  # fmt: skip


def _loop(m: Measured) -> Finding | None:
    late = m.span("loop.lag")
    if not late.count or mean(late) < LATE_SECONDS or m.busiest_cpu_cores >= FULL_CPU_CORES:
        return None
    evidence = (
        f"the workers' event loops are late by {time(mean(late))} on average (95 of 100 within "
        f"{time(late.quantile(0.95))}) while their processes use {m.cpu_cores:.2f} cores: others take the CPU"
    )
    advice = "give the workers a machine of their own, or run fewer processes on this one"
    return Finding(resource="cpu", share=round(min(1.0, m.cpu_cores), 4), evidence=evidence, advice=advice)


def _redis(m: Measured) -> Finding | None:
    trips = [m.span(name) for name in ("cache.get", "cache.put", "publish")]
    whole = sum(m.span(name).total for name in ("cache.get", "cache.put", "publish", "llm.call", "llm.pool_wait"))
    total = sum(each.total for each in trips)
    made = sum(each.count for each in trips)
    if not made or not whole or total < NAMED_SHARE * whole or total / made < 0.005:  # noqa: PLR2004  # 5 ms: no wait
        return None
    asked = m.span("redis")
    evidence = (
        f"{count(made, 'trip')} to Redis took {time(total / made)} each, {total / whole:.0%} of the prompts' time"
    )
    if asked.count:
        evidence += f"; a bare round trip takes {time(mean(asked))}"
    return Finding(
        resource="redis", share=round(total / whole, 4), evidence=evidence,
        advice="put Redis nearer to the workers, or look at what slows it (redis-cli --latency, SLOWLOG GET)",
    )  # fmt: skip


def _web(m: Measured) -> Finding | None:
    searches = m.span(WEB)
    each = searches.total / m.destinations if m.destinations else 0.0
    if not searches.count or each < NAMED_SHARE * m.destination_seconds:
        return None
    return Finding(
        resource="web", share=round(min(1.0, each / m.destination_seconds), 4),
        evidence=f"evidence is looked for before the first prompt: {spread(searches)}, of "
        f"{time(m.destination_seconds)} that a destination takes in its lane",
        advice="performance_optimization.max_concurrent_web_requests lets more pages be fetched at once; more lanes "
        "hide the wait while connections are free",
    )  # fmt: skip


def _idle(m: Measured) -> Finding:
    idle = 1 - m.lanes_busy / m.lanes if m.lanes else 1.0
    queue = m.span("queue.wait")
    waited = f"; a chunk waited {time(mean(queue))} in the queue" if queue.count else ""
    return Finding(
        resource="work", share=round(max(0.0, idle), 4),
        evidence=f"{m.lanes_busy:.1f} of {amount_of(m.lanes, 'lane')} are busy, nothing is full: little to do{waited}",
        advice="nothing to tune while lanes are idle: a larger job, or several at once, would use them",
    )  # fmt: skip


def _too_little(m: Measured) -> Finding:
    return Finding(
        resource="unknown", share=0.0,
        evidence=f"too little to name a bottleneck: {count(m.destinations, 'destination')}, {count(m.calls, 'call')}",
        advice=f"look again when there are {ENOUGH_DESTINATIONS} destinations and {ENOUGH_CALLS} calls",
    )  # fmt: skip
