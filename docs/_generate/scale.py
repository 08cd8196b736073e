"""Write docs/explanation/scale.md and docs/guide/capacity.md, of the record of figures: what many destinations need.

python docs/_generate/scale.py
"""

import math
from pathlib import Path
from typing import Final

from docs._generate.charts import figures_of
from docs._generate.figures import FIGURES, shown
from tests.benchmarks.record import Record, read

PAGE: Final = Path(__file__).parents[1] / "explanation" / "scale.md"
TEMPLATE: Final = Path(__file__).with_name("scale.txt")
DESTINATIONS: Final = 10**8
DAYS: Final = 30
GUIDE: Final = Path(__file__).parents[1] / "guide" / "capacity.md"
GUIDE_TEMPLATE: Final = Path(__file__).with_name("capacity.txt")
#: The guide's example.
EXAMPLE_DESTINATIONS: Final = 10**5
EXAMPLE_HOURS: Final = 8
#: Tokens of a destination by the sandbox's estimate, prompts and completions.
TOKENS: Final = 14_100
#: Connections to Redis at most: of a worker, and of consumer and dashboard (tests/e2e/test_connections.py).
REDIS_CONNECTIONS, OTHER_CONNECTIONS = 25, 35
CALLS: Final = 16
#: Seconds of an answer, days that the cache keeps one, connections and lanes of a worker: the settings as shipped.
ANSWER_SECONDS, CACHE_DAYS, CONNECTIONS = 2.0, 7, 15
#: Part of a core that a process should be busy at most, so that lines stay short.
BUSY: Final = 0.7
ROLES: Final = ("worker", "consumer", "Redis", "producer")


class Measured:
    """Figures of the largest jobs that were measured."""

    def __init__(self, record: Record) -> None:
        told = {name: case.figures for name, case in record.cases.items() if name.startswith("test_scale.py::")}
        full, light = (
            [one for name, some in told.items() if what in name for one in some] for what in ("full", "light")
        )
        self.full = {one.title: one for one in full if one.case == full[-1].case}
        self._light = {(one.case, one.title): one for one in light}
        self._sizes = list(dict.fromkeys(one.case for one in light))
        rows = [
            one for one in figures_of(record, "test_hot_path.py") if one.title == "Redis holds, a waiting destination"
        ]
        self.waiting_bytes = rows[-1].median if rows else 0.0

    @property
    def is_whole(self) -> bool:
        return bool(self.full and self._light and self.waiting_bytes)

    def growth(self) -> list[str]:
        """A row a size of the light job."""
        titles = ("enqueued to durable", *(f"CPU a destination, {role}" for role in ROLES),
                  *(f"memory at most, {role}" for role in ROLES), "Redis keeps, a destination",
                  "the database, a destination")  # fmt: skip
        rows = [f"| | {' | '.join(case.removesuffix(' destinations') for case in self._sizes)} |"]
        rows.append("|---" * (len(self._sizes) + 1) + "|")
        for title in titles:
            found = [self._light.get((case, title)) for case in self._sizes]
            unit = next((one.unit for one in found if one), "")
            cells = (shown(one.median) if one else "" for one in found)
            rows.append(f"| {title}, {unit} | {' | '.join(cells)} |")
        return rows


def page(record: Record) -> str:
    """The whole page; empty where nothing was measured."""
    m = Measured(record)
    return TEMPLATE.read_text("utf-8").format_map(_values(m, DESTINATIONS, DAYS)) if m.is_whole else ""


def guide(record: Record) -> str:
    """The guide to capacity; empty where nothing was measured."""
    m = Measured(record)
    values = _values(m, EXAMPLE_DESTINATIONS, EXAMPLE_HOURS / 24) if m.is_whole else None
    return GUIDE_TEMPLATE.read_text("utf-8").format_map(values) if values else ""


def _values(m: Measured, destinations: int, days: float) -> dict[str, str]:
    """What the page says, by its place in the template."""
    rate = destinations / days / 86_400
    cpu = {role: m.full[f"CPU a destination, {role}"].median / 1e3 for role in ROLES}
    in_flight = rate * CALLS * ANSWER_SECONDS
    database, kept = (m.full[f"{place}, a destination"].median * 1e3 for place in ("the database", "Redis keeps"))
    processes = math.ceil(in_flight / CONNECTIONS)
    worker, consumer = (m.full[f"memory at most, {role}"].median * 1e6 for role in ("worker", "consumer"))
    most_redis, most_consumer = (BUSY / cpu[role] for role in ("Redis", "consumer"))
    return {
        "growth": "\n".join(m.growth()),
        "days": f"{days:g}",
        "hours": f"{days * 24:g}",
        "requests_minute": f"{rate * CALLS * 60:,.0f}",
        "tokens_minute": f"{rate * TOKENS * 60:,.0f}",
        "worker_memory": _bytes(worker),
        "consumer_memory": _bytes(consumer),
        "workers_memory": _bytes(worker * processes),
        "redis_connections": str(processes * REDIS_CONNECTIONS + OTHER_CONNECTIONS),
        "all_kept": _bytes(kept * destinations),
        "redis_memory": _bytes((kept + m.waiting_bytes) * destinations),
        "cache_days": str(CACHE_DAYS),
        "calls": str(CALLS),
        "destinations": f"{destinations:,}",
        "answer_seconds": f"{ANSWER_SECONDS:g}",
        "connections": str(CONNECTIONS),
        "busy": f"{BUSY:.0%}",
        "size": m.full["destinations"].case,
        "worker_ms": _ms(cpu["worker"]),
        "consumer_ms": _ms(cpu["consumer"]),
        "redis_ms": _ms(cpu["Redis"]),
        "database_kb": _bytes(database),
        "kept_kb": _bytes(kept),
        "rate": shown(rate),
        "call_rate": shown(rate * CALLS),
        "in_flight": f"{in_flight:,.0f}",
        "processes": str(processes),
        "worker_cores": shown(cpu["worker"] * rate / BUSY),
        "redis_share": f"{cpu['Redis'] * rate:.0%}",
        "consumer_share": f"{cpu['consumer'] * rate:.0%}",
        "waiting_bytes": _bytes(m.waiting_bytes),
        "waiting": _bytes(m.waiting_bytes * destinations),
        "cache": _bytes(kept * rate * 86_400 * CACHE_DAYS),
        "cache_day": _bytes(kept * rate * 86_400),
        "database": _bytes(database * destinations),
        "most_consumer": shown(most_consumer),
        "consumer_times": shown(most_consumer / rate),
        "most_redis": shown(most_redis),
        "redis_times": shown(most_redis / rate),
    }


def _ms(seconds: float) -> str:
    return f"{shown(seconds * 1e3)} ms"


def _bytes(size: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= factor:
            return f"{shown(size / factor)} {unit}"
    return f"{size:.0f} bytes"


if __name__ == "__main__":
    if made := page(read(FIGURES)):
        PAGE.write_text(made)
        GUIDE.write_text(guide(read(FIGURES)))
