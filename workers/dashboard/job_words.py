"""What a page says of a job: one sentence, its parts, its figures. `job.js` says the same while the job runs."""

import time
from typing import Any, Final

from tasks.jobs.registry import JobStatus
from tasks.texts import count
from workers.observe.format import dollars, duration, percent, rate

MINUTE: Final = 60
HOUR: Final = 3600
#: Units of a bar's width, and what a part that is not empty has at least.
BAR_WIDTH: Final = 1000
LEAST_WIDTH: Final = 4


def sentence(status: JobStatus) -> str:
    """How a job stands: "213 of 500 finished, about 7 min left."."""
    done = f"{status.done + status.failed:,} of {status.total:,} finished"
    if status.unreadable:
        return ""
    if status.state == "done":
        took = "" if status.seconds is None else f" in {duration(status.seconds)}"
        return f"Finished{took}: {outcomes(status)}."
    if status.state == "cancelled":
        return f"Cancelled: {done} ({outcomes(status)})."
    if status.paused:
        return f"Paused: {done}."
    if status.state == "queued" and not status.batches:
        return f"{count(status.total, 'destination')} queued, none begun."
    left = "" if status.eta_seconds is None else f", about {left_words(status.eta_seconds)} left"
    return f"{done}{left}."


def outcomes(status: JobStatus) -> str:
    return f"{status.done - status.partial:,} complete, {status.partial:,} partial, {status.failed:,} failed"


def rest_words(status: JobStatus) -> str:
    """What of a job is not as it should be, for a narrow screen: "62 partial, 4 failed"."""
    numbers = ((status.partial, "partial"), (status.failed, "failed"))
    return ", ".join(f"{number:,} {what}" for number, what in numbers if number)


def left_words(seconds: float) -> str:
    """How long something still takes, no more exactly than a forecast can say."""
    if seconds < MINUTE:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / MINUTE)
    return f"{minutes} min" if minutes < MINUTE else f"{minutes // MINUTE} h {minutes % MINUTE} min"


def parts(status: JobStatus) -> list[dict[str, Any]]:
    """The parts of a job's bar, which are also what its table can be filtered by, with their places in the bar."""
    numbers = {"complete": status.done - status.partial, "partial": status.partial, "failed": status.failed}
    widths = {
        name: max(LEAST_WIDTH, BAR_WIDTH * n / max(1, status.total)) if n > 0 else 0 for name, n in numbers.items()
    }
    # What the small parts have too much, the largest gives.
    largest = max(widths, key=lambda name: widths[name])
    widths[largest] -= max(0, sum(widths.values()) - BAR_WIDTH)
    found, begin = [], 0.0
    for name, number in numbers.items():
        found.append({"name": name, "number": number, "x": f"{begin:.1f}", "width": f"{widths[name]:.1f}"})
        begin += widths[name]
    return found


def tiles(status: JobStatus) -> list[tuple[str, str, str, str]]:
    """A job's figures: a name, what it is, the number, and what it is of."""
    asked = status.llm_calls + status.cache_hits + status.coalesced
    saved = percent((status.cache_hits + status.coalesced) / asked) if asked else ""
    spent = status.cost_usd if status.spent_usd is None else status.spent_usd
    budget = "" if status.budget_usd is None else f"of {dollars(status.budget_usd)}"
    budget = " · ".join(filter(None, (budget, status.team and f"team {status.team}")))
    cached = f"{status.cached_tokens:,} of a provider's cache" if status.cached_tokens else ""
    whole = ("duration", "Duration", duration(status.seconds), "")
    return [
        ("ended", "Finished", f"{status.done + status.failed:,}", f"of {status.total:,}"),
        ("partial", "Partial", f"{status.partial:,}", ""),
        ("failed", "Failed", f"{status.failed:,}", ""),
        whole if status.is_final else ("eta", "Time left", duration(status.eta_seconds), ""),
        ("rate", "Rate", rate(status.rate_per_second or None), ""),
        ("calls", "LLM calls", f"{status.llm_calls:,}", f"{saved} from the cache" if saved else ""),
        ("tokens", "Tokens", f"{status.prompt_tokens + status.completion_tokens:,}", cached),
        ("cost", "Cost", dollars(spent), budget),
    ]


def moments(status: JobStatus) -> list[tuple[str, str, str]]:
    """When a job was created, began and ended: what, for machines, for people."""
    named = (("Created", status.created_at), ("Started", status.started_at), ("Ended", status.finished_at))
    return [(what, *moment(at)) for what, at in named if at and not (what == "Created" and status.started_at)]


def moment(at: float) -> tuple[str, str]:
    """A time for machines, and for people until their browser has made it theirs."""
    utc = time.gmtime(at)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", utc), time.strftime("%Y-%m-%d %H:%M UTC", utc)


def why(error_class: str | None, message: str | None) -> str:
    """A class of error and its text, where the text does not begin with it already."""
    said, text = error_class or "", message or ""
    return text if not said or text.startswith(f"{said}: ") else f"{said}: {text}" if text else said
