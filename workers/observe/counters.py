"""Counters of one process, on their way to all processes' (workers/observe/reporter.py).

A counter is a field: its name and its labels in one text, as the hash in Redis has it:
`llm_requests_total|endpoint=openai|model=gpt|outcome=ok`. Label values come out of the settings or out of closed lists.
"""

from collections.abc import Iterator
from typing import Final

#: Fields of one process, at most; what comes in addition is dropped and counted as `metrics_dropped_total`.
MAX_FIELDS: Final = 5_000
#: Characters of a label's value.
MAX_CHARACTERS: Final = 80
_SEPARATORS: Final = str.maketrans({"|": "_", "=": "_", "\n": "_"})


def field(name: str, **labels: str) -> str:
    pairs = (f"|{key}={value.translate(_SEPARATORS)[:MAX_CHARACTERS]}" for key, value in sorted(labels.items()))
    return name + "".join(pairs)


def parsed(text: str) -> tuple[str, dict[str, str]]:
    name, *pairs = text.split("|")
    return name, dict(pair.split("=", 1) for pair in pairs if "=" in pair)


class Counters:
    """What one process has counted since it was taken last."""

    __slots__ = ("_added", "enabled")

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self._added: dict[str, float] = {}

    def add(self, name: str, amount: float = 1.0) -> None:
        if not self.enabled or not amount:
            return
        added = self._added
        if name in added:
            added[name] += amount
        elif len(added) < MAX_FIELDS:
            added[name] = amount
        else:
            added["metrics_dropped_total"] = added.get("metrics_dropped_total", 0.0) + amount

    def taken(self) -> Iterator[tuple[str, float]]:
        added, self._added = self._added, {}
        yield from added.items()
