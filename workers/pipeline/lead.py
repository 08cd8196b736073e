"""One prompt ahead of the others of its round, where a provider's cache of prompt beginnings makes them cheaper so.

The prompts about one destination's themes begin alike. Sent at once, none finds the others' beginning in the provider's
cache; after one was answered, all may. What that brings differs: some keep beginnings of 1,024 tokens or more alone,
some need seconds to keep one, some find it at once in any case. So both ways are tried for a few destinations, by what
the answers say of cached tokens, and the better one is kept for a while.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from config.endpoints import BATCH
from config.settings import Settings
from workers.llm.endpoints.registry import model_for
from workers.pipeline.prompts import Stage

#: Stages of a round below which nobody goes ahead.
FEW: Final = 3
#: Destinations that try each way, and after how many both are tried anew.
TRIALS, TRIED_AFTER = 8, 500
#: Part of the prompts' tokens that must come out of the cache in addition, to be worth one answer's time.
WORTH: Final = 0.1


@dataclass
class _Way:
    """What one way brought: tokens of the prompts that followed, and of these out of the provider's cache."""

    destinations: int = 0
    prompt: int = 0
    cached: int = 0

    @property
    def share(self) -> float:
        return self.cached / self.prompt if self.prompt else 0.0


@dataclass
class _Known:
    """Of one model: both ways, and how many destinations have gone the better one since."""

    ahead: _Way = field(default_factory=_Way)
    together: _Way = field(default_factory=_Way)
    since: int = 0
    begun: int = 0


class Leads:
    """Knows for each model whether a prompt goes ahead; for all destinations of one process."""

    def __init__(self, settings: Settings) -> None:
        self._llm = settings.llm
        #: Prompts of a batch are not asked one after the other.
        self.is_on = settings.pipeline.lead_prompts and settings.llm.tier != BATCH
        self._known: dict[str, _Known] = {}

    def __repr__(self) -> str:
        return f"<Leads {', '.join(f'{name}: {self._is_worth(one)}' for name, one in self._known.items())}>"

    def goes_ahead(self, model: str) -> bool:
        """Whether a prompt of the next destination goes ahead; while both ways are tried, in turns."""
        known = self._known.setdefault(model, _Known())
        if min(known.ahead.destinations, known.together.destinations) < TRIALS:
            known.begun += 1
            return known.begun % 2 == 0
        known.since += 1
        if known.since > TRIED_AFTER:
            self._known[model] = _Known()
        return self._is_worth(known)

    def learn(self, model: str, *, led: bool, prompt: int, cached: int) -> None:
        """Count the prompts of one destination that followed, or that went together."""
        known = self._known.setdefault(model, _Known())
        way = known.ahead if led else known.together
        way.destinations += 1
        way.prompt += prompt
        way.cached += cached

    @staticmethod
    def _is_worth(known: _Known) -> bool:
        return known.ahead.share - known.together.share > WORTH

    def of_run(self, *, is_on: bool = True) -> "RunLeads":
        return RunLeads(self, is_on=is_on and self.is_on)

    def model_of(self, stage: Stage) -> str:
        return model_for(self._llm, stage.name, stage.model)


@dataclass
class RunLeads:
    """Who goes ahead for one destination: by model, its stage; None where all go together."""

    leads: Leads
    is_on: bool
    _chosen: dict[str, Stage | None] = field(default_factory=dict)

    def first(self, ready: Sequence[Stage], ended: Container[str]) -> list[Stage]:
        """Those of the stages that may start which start now."""
        about_themes = [stage for stage in ready if stage.asks != "new themes"]
        if not self.is_on or not about_themes:
            return list(ready)
        found = [stage for stage in ready if stage.asks == "new themes"]
        by_model: dict[str, list[Stage]] = {}
        for stage in about_themes:
            by_model.setdefault(self.leads.model_of(stage), []).append(stage)
        for model, stages in by_model.items():
            if model not in self._chosen:
                leads = len(stages) >= FEW and self.leads.goes_ahead(model)
                # The shortest answer is the soonest.
                self._chosen[model] = min(stages, key=lambda stage: stage.max_tokens) if leads else None
            lead = self._chosen[model]
            found += stages if lead is None or lead.name in ended else [one for one in stages if one is lead]
        return found

    def learn(self, called: Iterable[tuple[Stage, int, int]]) -> None:
        """Learn from the stages that were called: tokens of the prompt, and of these out of the provider's cache."""
        sums: dict[str, tuple[int, int]] = {}
        for stage, prompt, cached in called:
            model = self.leads.model_of(stage)
            if model in self._chosen and stage is not self._chosen[model] and stage.asks != "new themes":
                before = sums.get(model, (0, 0))
                sums[model] = before[0] + prompt, before[1] + cached
        for model, (prompt, cached) in sums.items():
            self.leads.learn(model, led=self._chosen[model] is not None, prompt=prompt, cached=cached)
