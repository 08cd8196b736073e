"""`/jobs/ID/destinations`: every destination of a job, chosen, ordered and page by page."""

from typing import Any, Final, cast
from urllib.parse import urlencode

from redis import RedisError

from tasks.errors import JobNotFoundError
from workers.dashboard.job_values import label
from workers.dashboard.job_words import why
from workers.dashboard.jobs_pages import PageHandler, Site
from workers.observe.format import NOTHING, dollars, duration, percent
from workers.results.database.rows import JobRow
from workers.results.queries.destination_pages import (
    MAX_COUNTED,
    ORDERS,
    STATES,
    Choice,
    DestinationLine,
    Order,
    destination_page,
    found_count,
    steps_and_model,
)

PER_PAGE: Final = 50
#: The furthest page in an order that no index has, where the database holds all that lies before; and in the others.
LAST_SORTED_PAGE: Final = 1_000
LAST_PAGE: Final = 100_000
#: Page numbers beside the present one.
BESIDE: Final = 2
#: What is read in the other direction first: the dearest, the slowest.
_DESCENDING: Final = frozenset({"cost", "time"})
#: Earlier names of a state in an address.
_FORMER: Final = {"done": "complete", "queued": "waiting"}
RUNNING: Final = "running"


class DestinationList(PageHandler):
    async def answer(self, *parts: str) -> None:
        (job_id,) = parts
        store = await self.site.store()
        row = await store.job(job_id)
        if row is None:
            raise JobNotFoundError(f"no job {job_id!r} in {store.place}")
        running = await self._running(job_id)
        asked = self.get_query_argument("state", "")
        choice = self._choice(asked)
        total = numbers_of(row)[choice.state]
        if choice.text and asked != RUNNING:
            total = await found_count(store, job_id, choice)
        last = last_page(total, choice)
        number = min(self._number(), last)
        lines, steps = [], 0
        if asked == RUNNING:
            total, last, number = len(running), 0, 0
            steps, _ = await steps_and_model(store, job_id)
        else:
            lines = await destination_page(store, job_id, choice, offset=number * PER_PAGE, limit=PER_PAGE)
        counts = numbers_of(row) | ({RUNNING: len(running)} if running or asked == RUNNING else {})
        state = RUNNING if asked == RUNNING else choice.state
        self.show(
            "destinations.html", job_id=job_id, name=row.name, state=state, choice=choice, total=total, label=label,
            counted="10,000+" if choice.text and total >= MAX_COUNTED else f"{total:,}", counts=counts, steps=steps,
            rows=[line_values(line) for line in lines], running=running if state == RUNNING else {},
            link=Links(state, choice), pages=pages(number, last), number=number, last=last, per_page=PER_PAGE,
        )  # fmt: skip

    def _choice(self, state: str) -> Choice:
        said = self.get_query_argument("sort", "")
        order = said.removeprefix("-")
        state = _FORMER.get(state, state)
        state = state if state in STATES else "all"
        if order not in ORDERS or (state in {"failed", "waiting"} and order != "name"):
            # Those have no profile to be ordered by.
            said = order = "input"
        is_descending = said.startswith("-") != (order in _DESCENDING)
        text = self.get_query_argument("q", "").replace("\x00", "")[:200]
        return Choice(state, cast("Order", order), is_descending, text)

    async def _running(self, job_id: str) -> dict[str, dict[str, Any]]:
        """Destinations under way by their answers, as far as the job's events tell; none where Redis is away."""
        try:
            recent = await self.site.recent.of(job_id)
        except (RedisError, OSError):
            return {}
        return dict(reversed(recent.running.items()))

    def _number(self) -> int:
        said = self.get_query_argument("page", "0")
        return min(int(said), LAST_PAGE) if said.isdecimal() and said.isascii() and len(said) < 9 else 0  # noqa: PLR2004  # digits


def numbers_of(row: JobRow) -> dict[str, int]:
    """How many destinations there are of each state, by the job's own counters."""
    total = row.total or 0
    return {
        "all": total,
        "complete": row.done - row.partial,
        "partial": row.partial,
        "failed": row.failed,
        "waiting": max(0, total - row.finished),
    }


def last_page(total: int, choice: Choice) -> int:
    furthest = LAST_SORTED_PAGE if choice.needs_profiles else LAST_PAGE
    return min(max(0, total - 1) // PER_PAGE, furthest)


def pages(number: int, last: int) -> list[int | None]:
    """The numbers to choose from: the first, the last, those beside the present one; None for a gap."""
    wanted = sorted({0, last, *range(max(0, number - BESIDE), min(last, number + BESIDE) + 1)})
    found: list[int | None] = []
    for before, each in zip([-1, *wanted], wanted, strict=False):
        found += [each] if each == before + 1 else [None, each]
    return found


class Links:
    """Addresses of the same page with one thing changed."""

    def __init__(self, state: str, choice: Choice) -> None:
        sign = "-" if choice.is_descending != (choice.order in _DESCENDING) else ""
        sort = "" if choice.order == "input" and not sign else f"{sign}{choice.order}"
        self._now = {"state": "" if state == "all" else state, "sort": sort, "q": choice.text, "page": ""}

    def __call__(self, **changed: Any) -> str:
        asked = {name: str(value) for name, value in (self._now | {"page": ""} | changed).items() if value}
        return "?" + urlencode(asked)

    def sorted(self, order: str) -> str:
        return self(sort=f"-{order}" if self._now["sort"] == order else order)

    def direction(self, order: str) -> str:
        """For `aria-sort`: how the page is ordered by a column; empty where it is not."""
        now = self._now["sort"]
        if now.removeprefix("-") != order:
            return ""
        return "descending" if (now.startswith("-")) != (order in _DESCENDING) else "ascending"


def line_values(line: DestinationLine) -> dict[str, Any]:
    tag = "partial" if line.partial else {"queued": "waiting", "done": "complete"}.get(line.state, line.state)
    said = why(line.error_class, line.message)
    return {
        "line": line,
        "tag": tag,
        "why": f"{line.stage}: {said}" if line.stage and said else said,
        "quality": percent(line.quality, NOTHING),
        "themes": NOTHING if line.themes is None else str(line.themes),
        "missing": f"{line.lacking} of {line.steps} steps" if line.lacking else "",
        "cost": NOTHING if line.state == "queued" else dollars(line.cost_usd),
        "time": NOTHING if line.elapsed_ms is None else duration(line.elapsed_ms / 1000),
    }


def handlers(site: Site) -> list[tuple[str, type[PageHandler], dict[str, Any]]]:
    return [(r"/jobs/([A-Za-z0-9_.-]{1,100})/destinations/?", DestinationList, {"site": site})]
