"""Fields that a user wants of each profile, and the stages that make them.

A field is named as its stage is after the dot (`price`), `themes` is what all the stages make that find some. Each may
also be written as its stage (`analyse.price`), and as a pattern (`enhance.*`).
"""

import fnmatch
from collections.abc import Iterable, Sequence
from typing import Final

from tasks.errors import ConfigError
from workers.pipeline.graph import Graph
from workers.pipeline.prompts import Stage

THEMES: Final = "themes"


def field_of(stage: Stage) -> str:
    return THEMES if stage.asks == "new themes" else stage.category


def fields_of(stages: Iterable[Stage]) -> list[str]:
    """The fields that stages make; `themes` comes first."""
    return sorted({field_of(stage): None for stage in stages}, key=lambda name: name != THEMES)


def matching(stages: Sequence[Stage], fields: Iterable[str]) -> list[Stage]:
    """The stages that make these fields. Raises ConfigError: a name or pattern means none."""
    found: set[str] = set()
    for word in fields:
        names = {
            stage.name for stage in stages if any(fnmatch.fnmatchcase(n, word) for n in (field_of(stage), stage.name))
        }
        if not names:
            raise ConfigError(f"no field {word!r}; known: {', '.join(fields_of(stages))}")
        found |= names
    return [stage for stage in stages if stage.name in found]


def stages_for(stages: Sequence[Stage], fields: Sequence[str]) -> list[Stage]:
    """The stages that make these fields and those that these need; all where no field is named. Raises ConfigError."""
    if not fields:
        return list(Graph(stages).stages.values())
    return needed(stages, [stage.name for stage in matching(stages, fields)])


def needed(stages: Sequence[Stage], names: Iterable[str]) -> list[Stage]:
    """The stages of these names, and all that these need."""
    graph, wanted = Graph(stages), set(names)
    while more := {need for name in wanted for need in graph.needs[name]} - wanted:
        wanted |= more
    return [stage for stage in stages if stage.name in wanted]


def canonical(stages: Sequence[Stage], fields: Sequence[str]) -> tuple[str, ...]:
    """The names of all that is made where these fields are wanted; none where that is everything. Raises ConfigError.

    A part of the stages that make a field stands by their own names.
    """
    chosen = stages_for(stages, fields)
    left = {stage.name for stage in stages} - {stage.name for stage in chosen}
    if not left:
        return ()
    halves = {field_of(stage) for stage in stages if stage.name in left}
    named = {(stage.name if field_of(stage) in halves else field_of(stage)): None for stage in chosen}
    return tuple(sorted(named, key=lambda name: name != THEMES))
