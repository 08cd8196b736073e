"""A job's measurements as rates and averages.

Little's law: mean number in a system = throughput x mean time in it (L = λW, 1961), however the times are distributed.
So the integrals that processes keep (connections in use x time, lanes busy x time) give mean times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from workers.observe.measurements import HOPS, PROMPT_ROUNDS, JobMeasurements, ProcessMeasurements
from workers.observe.metrics import Histogram

REFUSED: Final = frozenset({"rate_limited", "RateLimitedError"})
#: Answers by which a worker learns what a server takes, once for each server.
LEARNT: Final = frozenset({"FormatRefusedError", "ParameterRefusedError"})
#: The span of a destination's search for evidence on the web, which comes before its prompts.
WEB: Final = "web.evidence"
STEPS: Final = 200
#: Hops of a destination that lie outside its lane: their time is not time of the lane.
OUTSIDE: Final = frozenset({"queue.wait", "lane.wait", "result.wait", "db.commit", "publish"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One job in steady numbers. Rates are per second of `seconds`, amounts are means over that time."""

    #: Seconds in which workers had work of the job.
    seconds: float
    #: Destinations that came to an end, and the calls of one of them.
    destinations: int
    calls_per_destination: float
    #: LLM calls that were measured.
    calls: int
    #: Destinations of the whole job, ended or not.
    total: int
    workers: int
    lanes: float
    lanes_busy: float
    connections: float
    connections_busy: float
    connections_waiting: float
    #: Seconds that one call keeps a connection.
    hold_seconds: float
    #: Mean seconds of a call's waits before it.
    pool_wait_seconds: float
    rate_wait_seconds: float
    #: Mean seconds of a destination in its lane; and what it would take with no line to stand in.
    destination_seconds: float
    unqueued_seconds: float
    #: Cores that a worker's process uses: one is all that a Python process can.
    cpu_cores: float
    busiest_cpu_cores: float
    #: Share of the time in which the consumer was at the database, and how long a result waited for it.
    database_share: float
    result_wait_seconds: float
    refusals: int
    requests: int
    errors: Mapping[str, int]
    facts: Mapping[str, str | float | bool | None]
    spans: Mapping[str, Histogram]

    @property
    def rate(self) -> float:
        return self.destinations / self.seconds if self.seconds else 0.0

    @property
    def call_rate(self) -> float:
        return self.rate * self.calls_per_destination

    def fact(self, key: str) -> str | float | bool | None:
        last = key.rpartition(".")[2]
        for known in (key, last):
            if known in self.facts:
                return self.facts[known]
        return None

    def number(self, key: str) -> float | None:
        found = self.fact(key)
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None

    @property
    def learnt_per_minute(self) -> float | None:
        """Requests a minute that refusals have taught, of all endpoints together; None where nothing was learnt."""
        learnt = [value for key, value in self.facts.items() if key.startswith("learnt_requests_per_minute:")]
        known = [float(value) for value in learnt if isinstance(value, int | float)]
        return sum(known) if known else None

    def span(self, name: str) -> Histogram:
        return self.spans.get(name) or Histogram()

    def longest_hop(self) -> tuple[str, float]:
        """The hop that took most of the prompts' time in lanes, and its share of it; "" and 0 where none did."""
        found = lane_seconds(self.spans)
        name = max(found, key=found.__getitem__, default="")
        return (name, found[name] / sum(found.values())) if name and found[name] else ("", 0.0)


def lane_seconds(spans: Mapping[str, Histogram]) -> dict[str, float]:
    """Seconds by hop, of the hops that take time of a lane."""
    return {name: span.total for name, span in spans.items() if name in HOPS and name not in OUTSIDE}


def mean(histogram: Histogram) -> float:
    return histogram.total / histogram.count if histogram.count else 0.0


def expected_slowest(histogram: Histogram, among: float) -> float:
    """Mean of the slowest of `among` independent draws from a histogram: the integral of 1 - F(t)^n."""
    if not histogram.count or among <= 0:
        return 0.0
    # Mean of a maximum = mean over u of the quantile at u^(1/n), u even on 0-1.
    exponent = 1 / max(1.0, among)
    total = sum(histogram.quantile(((step + 0.5) / STEPS) ** exponent) for step in range(STEPS))
    return max(total / STEPS, mean(histogram))


def worked_seconds(parts: Sequence[ProcessMeasurements]) -> float:
    """Seconds in which any worker had work: the union of the parts' times, less the pauses within them."""
    spans = sorted((part.since, part.until) for part in parts)
    union, end = 0.0, float("-inf")
    for since, until in spans:
        union += max(0.0, until - max(since, end))
        end = max(end, until)
    whole = sum(max(0.0, part.until - part.since) for part in parts)
    held = sum(part.sums.get("held_seconds", part.until - part.since) for part in parts)
    return union * min(1.0, held / whole) if whole else held


def measured(picture: JobMeasurements, *, total: int, ended: int = 0, calls: int = 0) -> Measured:
    """Put a job's parts together. `total` is the job's destinations; `ended` and `calls` are by the database."""
    workers, sums, spans = picture.workers, picture.sums, picture.spans
    seconds = worked_seconds(workers)
    facts = {key: value for part in reversed(workers) for key, value in part.facts.items()}
    rounds = [int(width) for width in str(facts.get(PROMPT_ROUNDS) or "1").split()]
    destinations, sent = spans.get("destination", Histogram()), spans.get("llm.call", Histogram())
    count = destinations.count or ended
    per_destination = calls / ended if ended else sent.count / count if count else 0.0
    over = seconds or 1.0
    busy = _of(workers, "pool_busy_seconds")
    hold = busy / sent.count if sent.count and busy else mean(sent)
    errors = {
        name.removeprefix("llm.errors."): round(amount)
        for name, amount in sums.items()
        if name.startswith("llm.errors.") and amount
    }
    cpu = [
        part.sums.get("cpu_seconds", 0.0) / part.sums["held_seconds"] for part in workers if _of([part], "held_seconds")
    ]
    totals = {name: span.total for name, span in spans.items()}
    pool_wait = totals.get("llm.pool_wait", 0.0) / sent.count if sent.count else 0.0
    rate_wait = totals.get("llm.rate_wait", 0.0) / sent.count if sent.count else 0.0
    web_seconds = totals.get(WEB, 0.0) / count if count else 0.0
    return Measured(
        seconds=seconds,
        destinations=count,
        calls_per_destination=per_destination,
        calls=sent.count,
        total=total,
        workers=len(workers),
        lanes=_of(workers, "lane_seconds") / over,
        lanes_busy=_of(workers, "lane_busy_seconds") / over,
        connections=_of(workers, "pool_seconds") / over,
        connections_busy=busy / over,
        connections_waiting=totals.get("llm.pool_wait", 0.0) / over,
        hold_seconds=hold,
        pool_wait_seconds=pool_wait,
        rate_wait_seconds=rate_wait,
        destination_seconds=mean(destinations),
        unqueued_seconds=_unqueued(
            mean(destinations), sent, pool_wait + rate_wait, per_destination, rounds, before=web_seconds
        ),
        cpu_cores=sum(cpu) / len(cpu) if cpu else 0.0,
        busiest_cpu_cores=max(cpu, default=0.0),
        database_share=_database_share(picture),
        result_wait_seconds=mean(spans.get("result.wait", Histogram())),
        refusals=sum(errors.get(name, 0) for name in REFUSED),
        requests=round(sums.get("llm.requests", sent.count)),
        errors=errors,
        facts=facts,
        spans=spans,
    )


def _of(parts: Sequence[ProcessMeasurements], name: str) -> float:
    return sum(part.sums.get(name, 0.0) for part in parts)


def _unqueued(
    whole: float, sent: Histogram, waits: float, calls: float, rounds: Sequence[int], *, before: float
) -> float:
    """Mean seconds of a destination whose prompts never queue: with long lines the slowest call of each round."""
    if not sent.count or waits < mean(sent) / 10:
        return whole
    asked = min(1.0, calls / (sum(rounds) or 1))
    ideal = before + sum(expected_slowest(sent, width * asked) for width in rounds)
    return min(whole, ideal) if whole else ideal


def _database_share(picture: JobMeasurements) -> float:
    """Share of the time between the job's first entry and its last that the busiest consumer was at the database."""
    shares = [
        Histogram.from_dict(part.spans["db.commit"]).total / (part.until - part.since)
        for part in picture.parts
        if part.role == "consumer" and "db.commit" in part.spans and part.until > part.since
    ]
    return min(1.0, max(shares, default=0.0))
