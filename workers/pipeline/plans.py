"""What is asked of a destination, by the fields that its job wants."""

from collections.abc import Sequence
from typing import Final

from workers.pipeline.fields import matching, stages_for
from workers.pipeline.graph import Graph
from workers.pipeline.known import KnownProfiles
from workers.pipeline.prompts import pipeline_version

#: Choices of fields that a process remembers.
MAX_PLANS: Final = 64


class Plan:
    """The stages of a profile, and where the cache has such profiles whole; None where it is not asked for them."""

    def __init__(self, graph: Graph, known: KnownProfiles | None) -> None:
        self.graph = graph
        self.known = known
        self._version = pipeline_version(graph.stages.values())

    def __repr__(self) -> str:
        return f"<Plan {self.graph!r} version={self._version}>"

    def version(self, columns: Sequence[str] = ()) -> str:
        """The version of the prompts that show these further columns of the input."""
        return pipeline_version(self.graph.stages.values(), columns) if columns else self._version


class Plans:
    def __init__(self, graph: Graph, known: KnownProfiles | None) -> None:
        self.whole = Plan(graph, known)
        self._parts: dict[tuple[str, ...], Plan] = {}
        self._additions: dict[tuple[str, ...], Plan] = {}

    def __repr__(self) -> str:
        return f"<Plans {self.whole!r} and {len(self._parts)} parts>"

    def of(self, fields: tuple[str, ...]) -> Plan:
        """The plan for these fields; all for none. Raises ConfigError: no prompt file here makes one of them."""
        if not fields:
            return self.whole
        if fields not in self._parts:
            graph = Graph(stages_for(list(self.whole.graph.stages.values()), fields))
            known = self.whole.known
            _put(self._parts, fields, Plan(graph, known and known.only(graph.stages)))
        return self._parts[fields]

    def adding(self, stages: tuple[str, ...]) -> Plan:
        """The plan that asks these stages about themes that are there. Raises ConfigError: one has no prompt file."""
        if stages not in self._additions:
            all_stages = self.whole.graph.stages
            chosen = matching(list(all_stages.values()), stages)
            _put(self._additions, stages, Plan(Graph(chosen, settled=all_stages), None))
        return self._additions[stages]


def _put(plans: dict[tuple[str, ...], Plan], key: tuple[str, ...], plan: Plan) -> None:
    if len(plans) >= MAX_PLANS:
        plans.clear()
    plans[key] = plan
