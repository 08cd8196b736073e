"""A job as the pages show it: plain values, which the templates escape."""

from collections.abc import Mapping
from typing import Any

import msgspec

from tasks.jobs.pauses import format_paused
from tasks.jobs.registry import JobStatus
from workers.dashboard.job_words import left_words, parts, rest_words, sentence
from workers.observe.format import dollars, duration, rate


def job_values(status: JobStatus) -> dict[str, Any]:
    words = ""
    if status.unreadable:
        words = f"Its entry in Redis cannot be read: {status.unreadable}"
    elif status.paused:
        words = format_paused(status)
    elif status.waiting_for and not (status.wait and status.wait.kind == "batch"):
        words = f"Waiting: {status.waiting_for}"
    elif status.state == "stalled":
        words = "Nothing has happened for a minute: is a worker running? (themes doctor)"
    left = status.eta_seconds
    return {
        "job_id": status.job_id,
        "name": status.name,
        "only_fields": ", ".join(status.only_fields),
        "tag": tag_of(status),
        "words": words,
        "batches": status.batches.format() if status.batches else "",
        "sentence": sentence(status),
        "is_final": status.is_final,
        "total": status.total,
        "ended": status.done + status.failed,
        "partial": status.partial,
        "failed": status.failed,
        "paused": status.paused,
        "rest": rest_words(status),
        "parts": parts(status),
        "rate": rate(status.rate_per_second or None),
        "eta": duration(status.eta_seconds),
        "calls": f"{status.llm_calls:,}",
        "hits": f"{status.cache_hits:,}",
        "tokens": f"{status.prompt_tokens + status.completion_tokens:,}",
        "cost": dollars(status.cost_usd),
        "time": duration(status.seconds) if status.is_final else "" if left is None else f"{left_words(left)} left",
    }


def tag_of(status: JobStatus) -> str:
    return "paused" if status.paused else "waiting" if status.waiting_for else status.state


def job_counts(status: JobStatus) -> dict[str, Any]:
    names = (
        "total", "done", "failed", "partial", "rate_per_second", "eta_seconds", "llm_calls", "cache_hits", "coalesced",
        "prompt_tokens", "completion_tokens", "cost_usd",
    )  # fmt: skip
    return {name: getattr(status, name) for name in names}


def embedded(data: Mapping[str, Any]) -> str:
    """JSON that may stand inside a page: nothing in it can end the element that it stands in."""
    text = msgspec.json.encode(data).decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def label(name: str, country: str | None) -> str:
    return f"{name}, {country}" if country else name
