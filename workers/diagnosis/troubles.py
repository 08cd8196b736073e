"""What goes wrong beside a job's bounds: failing endpoints, slow Redis, a slow database, evidence that takes long."""

from typing import Final

from tasks.texts import count
from workers.diagnosis.finding import Finding
from workers.diagnosis.measured import LEARNT, REFUSED, WEB, Measured, mean
from workers.observe.format import duration, spread

#: Cores of one process from which on its CPU is what everything waits for: its loop is one thread.
FULL_CPU_CORES: Final = 0.8
#: Mean seconds that the event loop is late, from which on that is said.
LATE_SECONDS: Final = 0.05
#: Share of the requests that failed, from which on that is said.
FAILED_SHARE: Final = 0.1
#: Share of a destination's time from which on a part of it is named.
NAMED_SHARE: Final = 0.3
#: Seconds of a trip to Redis below which it is no wait.
TRIP_SECONDS: Final = 0.005
REDIS_ADVICE: Final = "put Redis nearer to the workers, or look at what slows it (redis-cli --latency, SLOWLOG GET)"
DATABASE_ADVICE: Final = (
    "look for other programs that write to or lock the database, for a slow disk (themes doctor); larger batches "
    "(database_batch_size) need fewer commits; PostgreSQL (DATABASE_URL) takes several consumers"
)


def troubles(m: Measured) -> list[Finding]:
    return [found for found in (_endpoint(m), _loop(m), _redis(m), _web(m)) if found]


def slow_database(m: Measured) -> Finding | None:
    """Results that wait longer for the consumer than they took to be made, or a good second."""
    waits, commits = m.span("result.wait"), m.span("db.commit")
    wait = mean(waits)
    if not waits.count or wait < max(0.3, m.destination_seconds * 0.3):
        return None
    evidence = (
        f"a result waits {duration(wait)} for the consumer ({duration(waits.quantile(0.95))} p95), a destination "
        f"is made in {duration(m.destination_seconds)}; a batch takes {duration(mean(commits))} "
        f"(the slowest {duration(commits.largest)}), {commits.count} of them"
    )
    share = max(m.database_share, wait / (wait + m.destination_seconds))
    return Finding(resource="database", share=round(min(1.0, share), 4), evidence=evidence, advice=DATABASE_ADVICE)


def waiting_for_llm(m: Measured) -> Finding | None:
    calls, first = m.span("llm.call"), m.span("llm.first_byte")
    if not calls.count or not m.destination_seconds:
        return None
    share = min(1.0, m.unqueued_seconds / m.destination_seconds) if m.pool_wait_seconds else 1.0
    slow = calls.quantile(0.95) > 3 * calls.quantile(0.5)  # a long tail
    evidence = f"a call takes {spread(calls)}"
    if first.count:
        evidence += f", to the first byte {duration(mean(first))}"
    advice = "a faster model or endpoint for some stages (llm.roles)"
    if slow and not m.fact("llm.hedge"):
        advice += "; llm.hedge: true asks a second time where an answer is late, for up to 5 % more calls"
    return Finding(resource="llm", share=round(share, 4), evidence=evidence, advice=advice)


def _endpoint(m: Measured) -> Finding | None:
    failed = {name: number for name, number in m.errors.items() if name not in REFUSED | LEARNT}
    number = sum(failed.values())
    if number < FAILED_SHARE * max(1, m.requests):
        return None
    worst = max(failed, key=lambda name: failed[name])
    pauses = m.span("llm.backoff")
    evidence = f"{number:,} of {count(m.requests, 'request')} failed, most with {worst} ({failed[worst]})"
    if pauses.count:
        evidence += f"; pauses before new tries took {duration(pauses.total)} in total"
    return Finding(
        resource="endpoint", share=round(min(1.0, number / max(1, m.requests)), 4), evidence=evidence,
        advice="see `themes failures JOB` and the endpoint's own logs; another one in llm.endpoints takes over at once",
    )  # fmt: skip


def _loop(m: Measured) -> Finding | None:
    late = m.span("loop.lag")
    if not late.count or mean(late) < LATE_SECONDS or m.busiest_cpu_cores >= FULL_CPU_CORES:
        return None
    evidence = (
        f"the workers' event loops are late by {duration(mean(late))} on average ("
        f"{duration(late.quantile(0.95))} p95) while their processes use {m.cpu_cores:.2f} cores: others take the CPU"
    )
    advice = "give the workers a machine of their own, or run fewer processes on this one"
    return Finding(resource="cpu", share=round(min(1.0, m.cpu_cores), 4), evidence=evidence, advice=advice)


def _redis(m: Measured) -> Finding | None:
    trips = [m.span(name) for name in ("cache.get", "cache.put", "publish")]
    whole = sum(m.span(name).total for name in ("cache.get", "cache.put", "publish", "llm.call", "llm.pool_wait"))
    total = sum(each.total for each in trips)
    made = sum(each.count for each in trips)
    if not made or not whole or total < NAMED_SHARE * whole or total / made < TRIP_SECONDS:
        return None
    asked = m.span("redis")
    evidence = (
        f"{count(made, 'trip')} to Redis took {duration(total / made)} each, {total / whole:.0%} of the prompts' time"
    )
    if asked.count:
        evidence += f"; a bare round trip takes {duration(mean(asked))}"
    return Finding(
        resource="redis", share=round(total / whole, 4), evidence=evidence,
        advice=REDIS_ADVICE,
    )  # fmt: skip


def _web(m: Measured) -> Finding | None:
    searches = m.span(WEB)
    each = searches.total / m.destinations if m.destinations else 0.0
    if not searches.count or each < NAMED_SHARE * m.destination_seconds:
        return None
    return Finding(
        resource="web", share=round(min(1.0, each / m.destination_seconds), 4),
        evidence=f"evidence is looked for before the first prompt: {spread(searches)}, of "
        f"{duration(m.destination_seconds)} that a destination takes in its lane",
        advice="performance_optimization.max_concurrent_web_requests lets more pages be fetched at once; more lanes "
        "hide the wait while connections are free",
    )  # fmt: skip
