"""Stages and what they need: a graph in which a stage starts the moment what it needs is there."""

import fnmatch
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from tasks.errors import ConfigError
from workers.pipeline.prompts import Stage

#: Characters that make a need a pattern.
_WILD: Final = "*?["


class Graph:
    """The stages of a pipeline, checked: every need exists, and none waits for itself.

    What is `settled` need not be among them.
    """

    def __init__(self, stages: Sequence[Stage], settled: Collection[str] = ()) -> None:
        self._settled = settled
        self.stages = {stage.name: stage for stage in stages}
        self.needs = {stage.name: self._resolve(stage) for stage in stages}
        self._refuse_circles()

    def __repr__(self) -> str:
        return f"<Graph stages={len(self.stages)} rounds={len(self.rounds())}>"

    def ready(self, settled: Iterable[str], started: Iterable[str]) -> list[Stage]:
        """Stages that may start now: all they need is settled, and they have not started."""
        done, begun = set(settled), set(started)
        return [stage for name, stage in self.stages.items() if name not in begun and self.needs[name] <= done]

    def rounds(self) -> list[list[str]]:
        """The stages by how many others must end one after the other before they start."""
        settled: set[str] = set()
        rounds: list[list[str]] = []
        while names := [stage.name for stage in self.ready(settled, settled)]:
            rounds.append(names)
            settled.update(names)
        return rounds

    def _resolve(self, stage: Stage) -> frozenset[str]:
        found: set[str] = set()
        for need in stage.needs:
            names = {name for name in self.stages if fnmatch.fnmatchcase(name, need) and name != stage.name}
            if not names and need not in self._settled and not any(char in need for char in _WILD):
                raise ConfigError(f"{stage.name}.md: needs {need!r}, but there is no such stage")
            found |= names
        if stage.asks != "new themes":
            # Themes have numbers only when all that find some have ended.
            found |= {name for name, other in self.stages.items() if other.asks == "new themes"}
        return frozenset(found)

    def _refuse_circles(self) -> None:
        stuck = set(self.stages) - {name for names in self.rounds() for name in names}
        if stuck:
            raise ConfigError(f"prompt files: these stages wait for each other: {', '.join(sorted(stuck))}")
