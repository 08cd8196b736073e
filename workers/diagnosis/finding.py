"""What a diagnosis finds."""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

Resource = Literal[
    "connections", "rate limit", "lanes", "cpu", "redis", "database", "work", "tail", "workers", "llm", "endpoint",
    "batches", "memory", "web", "unknown",
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
    "batches": "batches at the provider",
    "memory": "memory that grows",
    "web": "evidence from the web",
    "unknown": "not known",
}


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
