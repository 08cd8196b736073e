"""What bounds a job, how that is known, and what changing it would bring.

The lowest of the resources' capacities is the bottleneck; raising it helps until the next one (asymptotic bounds of
closed queueing networks: Denning & Buzen, "The Operational Analysis of Queueing Network Models", ACM Computing Surveys
10 (3), 1978; Lazowska, Zahorjan, Graham & Sevcik, "Quantitative System Performance", 1984, chapter 5). The demands come
from `measured`, by Little's law. A forecast assumes that an answer takes as long under more load.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from tasks.texts import count
from workers.diagnosis.finding import NAMES, Finding, Resource
from workers.diagnosis.measured import Measured, mean
from workers.diagnosis.troubles import (
    DATABASE_ADVICE,
    FULL_CPU_CORES,
    NAMED_SHARE,
    slow_database,
    troubles,
    waiting_for_llm,
)
from workers.observe.format import amount_of, duration, plain, rounded, times
from workers.observe.measurements import HOPS

#: What prompts wait for in these hops.
WAITS: Final[Mapping[str, Resource]] = {
    "llm.rate_wait": "rate limit",
    "llm.pool_wait": "connections",
    "llm.backoff": "endpoint",
    "llm.connect": "endpoint",
    "llm.validate": "cpu",
    "cache.get": "redis",
    "cache.put": "redis",
    "flight.claim": "redis",
}
#: Calls and destinations below which nothing is forecast.
ENOUGH_CALLS: Final = 20
ENOUGH_DESTINATIONS: Final = 3
#: Share of a bound from which on it explains the rate.
EXPLAINS: Final = 0.55
#: Share of the requests that were refused for their number, from which on that is said.
REFUSED_SHARE: Final = 0.02
#: Share of busy lanes from which on there is work enough.
BUSY: Final = 0.7
#: Batches that a result waits for, from which on it counts as queueing: a new one waits for that under way and its own.
BACKLOG: Final = 3.0
#: A gain below this is within what repeats of a run differ by.
WORTH_IT: Final = 1.05
#: A change is forecast with so much more of the changed resource than the next bound needs: lines are never even.
HEADROOM: Final = 1.3


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
    beside = troubles(m)
    if m.calls < ENOUGH_CALLS or m.destinations < ENOUGH_DESTINATIONS or not m.seconds:
        return [*beside, _too_little(m)] if m.calls else beside
    known = bounds(m)
    found = [_of(m, bound, known) for bound in known if m.rate >= EXPLAINS * bound.rate or bound is known[0]]
    is_busy = m.lanes_busy >= BUSY * m.lanes
    found = [each for each in found if each.share > NAMED_SHARE or each.resource != "database"]
    found = [each for each in found if each.resource != "work" or not is_busy]
    if database := slow_database(m):
        found = [database, *(each for each in found if each.resource != "database")]
    found.sort(key=lambda each: (-_urgency(each), -each.share))
    if (longest := _longest_wait(m, [*found, *beside])) and not (found and _urgency(found[0])):
        found = _led_by(longest, found)
    elif not found or found[0].share < EXPLAINS:
        found.insert(0, (is_busy and waiting_for_llm(m)) or _idle(m))
    failing = [each for each in beside if each.resource == "endpoint" and found[0].resource != "endpoint"]
    found = [*failing, *found] if longest is None else [found[0], *failing, *found[1:]]
    named = {each.resource for each in found}
    found += [each for each in beside if each.resource not in named]
    llm = waiting_for_llm(m) if found[0].resource in {"lanes", "work"} else None
    return [*found, llm] if llm else found


def _urgency(finding: Finding) -> int:
    """A full process makes everything else look full: its calls are held while their answers wait to be read."""
    return int(finding.resource == "cpu" and finding.share >= FULL_CPU_CORES)


def _longest_wait(m: Measured, found: Sequence[Finding]) -> Finding | None:
    """Where prompts spend more time in one line than anywhere else: that line bounds the job, whatever is full now.

    A bound is made of what was allowed at the end, and a limit may have come and gone.
    """
    hop, share = m.longest_hop()
    resource = WAITS.get(hop)
    if resource is None:
        return None
    for each in found:
        if each.resource == resource and (each.share >= EXPLAINS or resource != "rate limit"):
            return msgspec.structs.replace(each, share=round(max(each.share, share), 4))
    if resource not in _WAIT_ADVICE:
        return None  # a hop that is short by itself
    span = m.span(hop)
    evidence = f"{HOPS[hop]} took {share:.0%} of the prompts' time, {duration(mean(span))} each"
    if resource == "rate limit":
        evidence += f"; {m.call_rate:.3g} calls/s went out on average"
        if (allowed := allowed_calls(m)) and allowed > m.call_rate / EXPLAINS:
            evidence += f", {allowed:.3g} are allowed since the limit changed"
    return Finding(resource=resource, share=round(share, 4), evidence=evidence, advice=_WAIT_ADVICE[resource])


def _led_by(longest: Finding, found: Sequence[Finding]) -> list[Finding]:
    """The longest wait first. What does not explain the rate beside it is no advice: it would be the next to wait."""
    explained = any(each.resource == longest.resource and each.share >= EXPLAINS for each in found)
    others = [each for each in found if each.resource != longest.resource and each.share >= EXPLAINS]
    if explained:
        return [longest, *others]
    words = f"more would bring nothing by itself: {longest.name} would bound it"
    return [
        longest,
        *(msgspec.structs.replace(each, advice=words, gain=None, until=None, setting=None) for each in others),
    ]


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
    limit = f"the limit is {NAMES[following.resource]} ({following.words})"
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
        f"waits {duration(m.pool_wait_seconds)} for one and keeps it {duration(m.hold_seconds)}; "
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
    waits = f"a call waits {duration(m.rate_wait_seconds)} for its turn, {m.call_rate:.3g} calls/s go out"
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
        f"lane {duration(m.destination_seconds)}"
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
    lag = f", their loop is late by {duration(late.quantile(0.95))} (p95)" if late.count else ""
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
        f"average; one destination takes {duration(m.destination_seconds)}"
    )
    return evidence, Change("nothing to tune: a larger job would use what is idle; this one waits for the LLM")


def _database_bound(m: Measured, _following: float) -> tuple[str, Change]:
    commits = m.span("db.commit")
    evidence = f"the consumer is at the database {m.database_share:.0%} of the time, {duration(mean(commits))} a batch"
    return evidence, Change(DATABASE_ADVICE)


_WAIT_ADVICE: Final[Mapping[Resource, str]] = {
    "rate limit": "a higher limit from the provider, or a second endpoint (llm.endpoints), shortens that wait",
    "connections": "a larger performance_optimization.llm_connection_pool_size; the page /llm shows what is allowed",
    "endpoint": "see the endpoint's own logs; another one in llm.endpoints takes over at once",
}
_SPEAKERS: Final = {
    "connections": _connections,
    "rate limit": _rate_limit,
    "lanes": _lanes,
    "cpu": _cpu,
    "work": _work,
    "database": _database_bound,
}


def _idle(m: Measured) -> Finding:
    idle = 1 - m.lanes_busy / m.lanes if m.lanes else 1.0
    queue = m.span("queue.wait")
    waited = f"; a chunk waited {duration(mean(queue))} in the queue" if queue.count else ""
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
