"""A job as the pages show it: plain values, which the templates escape."""

from collections.abc import Mapping
from typing import Any

import msgspec

from tasks.jobs.registry import JobStatus, format_paused
from workers.observe.format import NOTHING, dollars, duration


def job_values(status: JobStatus) -> dict[str, Any]:
    words = ""
    if status.unreadable:
        words = f"Its entry in Redis cannot be read: {status.unreadable}"
    elif status.paused:
        words = format_paused(status)
    elif status.waiting_for:
        words = f"Waiting: {status.waiting_for}"
    elif status.state == "stalled":
        words = "Nothing has happened for a minute: is a worker running? (themes doctor)"
    return {
        "job_id": status.job_id,
        "name": status.name,
        "tag": "paused" if status.paused else "waiting" if status.waiting_for else status.state,
        "words": words,
        "is_final": status.is_final,
        "total": status.total,
        "ended": status.done + status.failed,
        "failed": status.failed,
        "rate": f"{status.rate_per_second:.1f}/s" if status.rate_per_second else NOTHING,
        "eta": duration(status.eta_seconds),
        "calls": f"{status.llm_calls:,}",
        "hits": f"{status.cache_hits:,}",
        "tokens": f"{status.prompt_tokens + status.completion_tokens:,}",
        "cost": dollars(status.cost_usd),
        "time": duration(status.seconds),
    }


def job_counts(status: JobStatus) -> dict[str, Any]:
    names = (
        "total", "done", "failed", "rate_per_second", "eta_seconds", "llm_calls", "cache_hits", "prompt_tokens",
        "completion_tokens", "cost_usd",
    )  # fmt: skip
    return {name: getattr(status, name) for name in names}


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that may stand inside a page: nothing in it can end the element that it stands in."""
    text = msgspec.json.encode(data).decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def label(name: str, country: str | None) -> str:
    return f"{name}, {country}" if country else name
