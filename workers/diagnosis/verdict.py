"""What limits the live system now, in one sentence: for `status`, `watch`, `top`, the pages and the report alike.

Workers report, once a second, how many of their prompts stand in which line, as means of the last seconds. The longest
line is the limit. How long one waits in it is Little's law: those in line / those that leave it a second.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final

import msgspec
from redis import Redis, ResponseError

from tasks import keys
from tasks import worker_reports as fleet
from tasks.connection import text_of
from tasks.jobs.batches import Batches
from tasks.jobs.pauses import format_paused
from tasks.jobs.registry import JobStatus
from tasks.readings import amounts, replies_of
from tasks.texts import count
from workers.diagnosis.finding import NAMES, Finding, Resource
from workers.observe.format import amount_of, duration

#: Share of the prompts under way that stand in a line, from which on the line is the limit.
LIMITS: Final = 0.15
#: Share of busy lanes below which there is too little work, and from which on lanes are full.
IDLE: Final = 0.7
FULL: Final = 0.95
#: Percent of a core from which on a worker process is full: its loop is one thread.
FULL_CPU_PERCENT: Final = 85.0
BATCH_ADVICE: Final = "a provider takes minutes to a day for a batch; other tiers answer at once"
#: Seconds that a result waits to be saved, from which on the database is the limit.
BEHIND_SECONDS: Final = 3.0


class Verdict(msgspec.Struct, frozen=True):
    """`text` and `advice` are sentences; both are empty where nothing is going on."""

    resource: Resource | None = None
    text: str = ""
    advice: str = ""

    @property
    def words(self) -> str:
        return f"{self.text} {self.advice}".strip()


NONE: Final = Verdict()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """What a verdict is made of, at one moment."""

    workers: Mapping[str, fleet.WorkerReport]
    consumers: Mapping[str, fleet.ConsumerReport]
    #: Requests a minute that refusals have taught, by endpoint and model.
    learnt: Mapping[str, float]
    #: Messages in the queue.
    queue: int
    #: Results that are not saved yet, and how many seconds the oldest has waited.
    results: int
    behind_seconds: float

    def sum(self, name: str) -> float:
        return sum(float(getattr(worker.lately, name)) for worker in self.workers.values())


def read_pulse(redis: Redis, broker: Redis) -> Pulse:
    """Errors of Redis pass through."""
    workers = fleet.workers(redis)
    with broker.pipeline(transaction=False) as pipeline:
        for key in keys.queue_keys():
            pipeline.llen(key)
        queue = sum(pipeline.execute())
    results, seconds = read_backlog(redis)
    return Pulse(
        workers=workers, consumers=fleet.consumers(redis), learnt=read_learnt(redis, workers), queue=queue,
        results=results, behind_seconds=seconds,
    )  # fmt: skip


def read_learnt(redis: Redis, workers: Mapping[str, fleet.WorkerReport]) -> dict[str, float]:
    """Requests a minute that refusals have taught, by the route that asks them."""
    routes = {key: said for worker in workers.values() for key, said in worker.pool.routes.items() if said.limit_digest}
    replies = replies_of(redis, [keys.learnt(str(said.limit_digest)) for said in routes.values()])
    us = {key: amounts(reply, ["us"]).get("us", 0) for key, reply in zip(routes, replies, strict=True)}
    return {key: 60e6 / each for key, each in us.items() if each > 0}


def read_backlog(redis: Redis) -> tuple[int, float]:
    """Entries of the results stream, and seconds since the oldest was made that no consumer has acknowledged."""
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.xlen(keys.RESULTS)
        pipeline.xinfo_groups(keys.RESULTS)
        pipeline.xpending(keys.RESULTS, keys.GROUP)
        pipeline.time()
        length, groups, pending, now = pipeline.execute(raise_on_error=False)
    if isinstance(length, ResponseError):
        raise length  # a key of another type
    if not length or isinstance(groups, ResponseError):
        return int(length), 0.0
    delivered = next(
        (text_of(each["last-delivered-id"]) for each in groups if text_of(each["name"]) == keys.GROUP), "0"
    )
    first = f"({delivered}" if isinstance(pending, ResponseError) or not pending["pending"] else text_of(pending["min"])
    oldest: Any = redis.xrange(keys.RESULTS, min=first, count=1)
    if not oldest:
        return int(length), 0.0
    made = int(text_of(oldest[0][0]).partition("-")[0]) / 1000
    return int(length), max(0.0, now[0] + now[1] / 1e6 - made)


def of_job(status: JobStatus, pulse: Pulse) -> Verdict:
    """What limits a job that has not ended."""
    if status.is_final:
        return NONE
    if status.paused:
        return Verdict("work", _sentence(format_paused(status)))
    return of_jobs([status], pulse)


def of_jobs(statuses: Sequence[JobStatus], pulse: Pulse) -> Verdict:
    """What limits everything, by all jobs that may not have ended."""
    working = [status for status in statuses if not (status.is_final or status.paused)]
    bought = together(working)
    if pulse.workers and bought and all(status.wait and status.wait.kind == "batch" for status in working):
        text, advice = _sentence(bought.clause()), _sentence(f"nothing is stuck: {BATCH_ADVICE}")
        return _database(pulse) or _waiting(pulse) or Verdict("batches", text, advice)
    return of_system(pulse, is_working=bool(working))


def together(statuses: Sequence[JobStatus]) -> Batches | None:
    """The batches of all these jobs; None where none has any."""
    found = [status.batches for status in statuses if status.batches]
    return reduce(operator.add, found) if found else None


def of_findings(findings: Sequence[Finding]) -> Verdict:
    """The same words for what a report has found first."""
    if not findings:
        return NONE
    finding = findings[0]
    if finding.resource in {"unknown", "batches"}:
        return Verdict(finding.resource, _sentence(finding.evidence), _sentence(finding.advice))
    return _limited(finding.resource, finding.evidence, finding.advice)


def of_system(pulse: Pulse, *, is_working: bool) -> Verdict:
    """What limits everything; `is_working`: there is a job that has not ended."""
    if not is_working:
        return NONE
    if not pulse.workers:
        return Verdict("workers", "No worker is running.", "Start one: themes worker, or themes up.")
    for judge in (_database, _waiting, _cpu, _line, _lanes):
        if found := judge(pulse):
            return found
    return NONE


def _database(pulse: Pulse) -> Verdict | None:
    if pulse.behind_seconds < BEHIND_SECONDS:
        return None
    if not pulse.consumers:
        text = f"No results consumer is running: {count(pulse.results, 'result')} wait to be saved."
        return Verdict("database", text, "Start one: themes consumer.")
    evidence = f"{count(pulse.results, 'result')} wait to be saved, the oldest for {duration(pulse.behind_seconds)}"
    return _limited("database", evidence, "look for what holds the database or slows its disk (themes doctor)")


def _waiting(pulse: Pulse) -> Verdict | None:
    """Every worker waits for its endpoints, or for the consumer."""
    waits = [worker.waiting_for for worker in pulse.workers.values()]
    if not all(waits):
        return None
    wait = next(each for each in waits if each)
    limited, away = "ask for a higher limit, or add an endpoint (llm.endpoints)", "bring the endpoint back, or add one"
    if wait.kind == "other":
        return Verdict("database", _sentence(wait.format()), "Start a consumer, or see why it is slow: themes doctor.")
    if wait.kind in {"server_limit", "own_limit"}:
        return Verdict("rate limit", f"Limited by the rate limit: {wait.format()}.", _sentence(limited))
    return Verdict("endpoint", f"Limited by the endpoint: {wait.format()}.", _sentence(away + " (llm.endpoints)"))


def _cpu(pulse: Pulse) -> Verdict | None:
    known = [each.usage.cpu_percent for each in pulse.workers.values() if each.usage.cpu_percent is not None]
    if not known or min(known) < FULL_CPU_PERCENT:
        return None
    evidence = f"the {count(len(known), 'worker process')} use {sum(known) / len(known):.0f} % of a core each"
    return _limited("cpu", evidence, f"run more worker processes, on free cores (themes up --workers {len(known) + 1})")


def _line(pulse: Pulse) -> Verdict | None:
    """The longer of the lines before the LLM, where a good part of the prompts stands in it."""
    rate, pool, calls = pulse.sum("rate_waiting"), pulse.sum("connections_waiting"), pulse.sum("connections_in_use")
    if max(rate, pool) < LIMITS * (rate + pool + calls) or max(rate, pool) < 1:
        return None
    return _rate(pulse, rate) if rate >= pool else _connections(pulse, pool, calls)


def _rate(pulse: Pulse, waiting: float) -> Verdict:
    routes = [(key, said) for worker in pulse.workers.values() for key, said in worker.pool.routes.items()]
    key, route = max(routes, key=lambda one: one[1].queued, default=("", fleet.RouteReport()))
    name = key.removesuffix(f"/{route.model}")
    set_to = _setting(pulse, "llm.requests_per_minute")
    per_minute = pulse.learnt.get(key) or set_to
    evidence = f"{amount_of(waiting, 'call')} wait for their turn"
    if per_minute:
        evidence += f", about {duration(60 * waiting / per_minute)} each"
        limit = f"{name} allows {per_minute:,.0f} requests/min" if key in pulse.learnt else ""
        limit = limit or f"llm.requests_per_minute is {per_minute:,.0f}"
        evidence = f"{limit}; {evidence}"
    own = set_to or _setting(pulse, "llm.tokens_per_minute")
    advice = "raise the limit (where the provider allows it)" if own else "ask the provider for a higher limit"
    return _limited("rate limit", evidence, f"{advice}, or add an endpoint (llm.endpoints)")


def _connections(pulse: Pulse, waiting: float, calls: float) -> Verdict:
    allowed = sum(worker.connections for worker in pulse.workers.values())
    fewer = sum(min(worker.connections, _seats(worker)) for worker in pulse.workers.values())
    evidence = f"{calls:.0f} of {allowed:,} are in use and {amount_of(waiting, 'call')} wait for one"
    if fewer < FULL * allowed:
        evidence = (
            f"after refusals {fewer:.0f} of {allowed:,} may be used, and {amount_of(waiting, 'call')} wait for one"
        )
        return _limited("connections", evidence, "add an endpoint (llm.endpoints), or wait: the number grows by itself")
    size = "performance_optimization.llm_connection_pool_size"
    return _limited("connections", evidence, f"raise {size}, where the LLM server answers more at once")


def _seats(worker: fleet.WorkerReport) -> float:
    return sum(route.limit for route in worker.pool.routes.values()) or worker.connections


def _lanes(pulse: Pulse) -> Verdict | None:
    lanes, busy = sum(worker.lanes for worker in pulse.workers.values()), pulse.sum("lanes_busy")
    if round(busy) == round(pulse.sum("connections_in_use")) == 0:
        return None  # a job that has just begun: the means of the last seconds do not have it yet
    connections = sum(worker.connections for worker in pulse.workers.values())
    used = f"{pulse.sum('connections_in_use'):.0f} of {connections:,} connections are in use"
    waiting = pulse.queue or any(worker.lanes_waiting for worker in pulse.workers.values())
    if lanes and waiting and busy >= FULL * lanes:
        evidence = f"all {lanes:,} are busy while {used}"
        return _limited("lanes", evidence, "raise performance_optimization.worker_pool_size, or start more workers")
    if busy < IDLE * lanes and not waiting:
        evidence = f"{busy:.0f} of {amount_of(lanes, 'lane')} are busy and nothing waits in the queue"
        return _limited("work", evidence, "a larger job, or several at once, would use the rest")
    latencies = [
        route.latency_ms
        for worker in pulse.workers.values()
        for route in worker.pool.routes.values()
        if route.latency_ms is not None
    ]
    answer = f", an answer takes {duration(sum(latencies) / len(latencies) / 1000)}" if latencies else ""
    return _limited("llm", f"{used}, nothing waits in line{answer}", "ask a faster model for some stages (llm.roles)")


def _setting(pulse: Pulse, key: str) -> float | None:
    for worker in pulse.workers.values():
        said = worker.settings.get(key)
        if said is not None and isinstance(said.value, int | float) and not isinstance(said.value, bool):
            return float(said.value)
    return None


def _limited(resource: Resource, evidence: str, advice: str) -> Verdict:
    return Verdict(resource, f"Limited by {NAMES[resource]}: {evidence}.", _sentence(advice))


def _sentence(words: str) -> str:
    """With a large letter where it begins with a word; a setting keeps its own."""
    first = words[:1].upper() if words.partition(" ")[0].rstrip(":,").isalpha() else words[:1]
    return f"{first}{words[1:].rstrip('.')}."
