"""What happens to a destination: its stages run as the graph lets them, and their answers become a profile."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final, NamedTuple

from config.endpoints import BATCH
from config.sections import PerformanceSettings
from config.settings import Settings
from tasks.errors import InvalidAnswerError, JobStoppedError, ParkedError, RetryableError
from tasks.messages import Destination, Failure, PackedProfile, Profile, StageRecord, Theme, Usage
from tasks.packed import UnpackableError, pack_profile
from tasks.storable import MAX_MESSAGE, STORE_ERROR, STORE_STAGE
from workers.llm.budget import JobBudget
from workers.llm.cancellation import Cancellation
from workers.llm.generator import FocusedLLMGenerator
from workers.llm.spend import USUAL, Terms
from workers.observe.call_journal import current
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.assembly import EXCERPT_CHARACTERS, EXCERPT_THEMES, StageOutcome, assemble, numbered
from workers.pipeline.evidence import EvidenceReader, FoundEvidence
from workers.pipeline.graph import Graph
from workers.pipeline.known import Known, KnownProfiles
from workers.pipeline.lead import Leads, RunLeads
from workers.pipeline.plans import Plans
from workers.pipeline.prompts import Input, Stage
from workers.pipeline.refused_answers import RefusedAnswers
from workers.pipeline.stage_run import StageRun

#: The stage of a record that stands for all stages of a profile that the cache has whole.
ALL_STAGES: Final = "all"
#: Called with each stage as it ends: the destination, the stage's record, how many themes it found or described, and
#: the first of what it found (see `excerpt`).
StageListener = Callable[[Destination, StageRecord, int, list[str]], None]


class Processed(NamedTuple):
    """A destination's profile or failure, what it cost, and whether trying again may give more."""

    profile: PackedProfile | None
    failure: Failure | None
    usage: Usage
    is_retryable: bool

    @classmethod
    def of(cls, profile: Profile, *, is_retryable: bool, attempt: int) -> "Processed":
        """A profile, packed; where that cannot be done, the failure that says why."""
        try:
            return cls(pack_profile(profile), None, profile.usage, is_retryable)
        except UnpackableError as exc:
            failure = Failure(STORE_STAGE, STORE_ERROR, f"its result cannot be stored: {exc}"[:MAX_MESSAGE], attempt)
            return cls(None, failure, profile.usage, is_retryable=False)


class FocusedPromptProcessor:
    """Runs the graph of focused prompts for one destination after another, any number at once."""

    def __init__(
        self,
        graph: Graph,
        generator: FocusedLLMGenerator,
        *,
        settings: Settings,
        profiler: PerformanceProfiler,
        evidence: EvidenceReader | None = None,
        known: KnownProfiles | None = None,
        refused: RefusedAnswers | None = None,
    ) -> None:
        self._evidence = evidence
        self._refused = refused
        #: Not where the web is read: it may say something new.
        self.plans = Plans(graph, known if evidence is None else None)
        self._generator = generator
        self._profiler = profiler
        self._limits = settings.performance_optimization
        self._leads = Leads(settings)
        self._order = count()

    def __repr__(self) -> str:
        return f"<FocusedPromptProcessor {self.plans!r}>"

    async def known(
        self, some: Sequence[Destination], *, columns: tuple[str, ...] = (), fields: tuple[str, ...] = (),
        on_stage: StageListener | None = None,
    ) -> list[Processed | None]:  # fmt: skip
        """Of some destinations what the cache has whole, looked up together; None where one must be processed.

        Raises `ConfigError` as `Plans.of`.
        """
        plan = self.plans.of(fields)
        if plan.known is None or any(destination.addition for destination in some):
            return [None] * len(some)
        found = await plan.known.find(some, columns, plan.version(columns))
        for destination, known in zip(some, found, strict=True):
            if known:
                _report(known, destination, on_stage)
        return [known and Processed(known.profile, None, known.profile.usage, is_retryable=False) for known in found]

    async def process(
        self,
        destination: Destination,
        *,
        use_cache: bool = True,
        columns: tuple[str, ...] = (),
        fields: tuple[str, ...] = (),
        attempt: int = 1,
        on_stage: StageListener | None = None,
        budget: JobBudget | None = None,
        terms: Terms = USUAL,
        cancellation: Cancellation | None = None,
        may_be_known: bool = True,
    ) -> Processed:
        """Process one destination; errors of the LLM end up in the result.

        Without `may_be_known` the cache is not asked for a whole profile: `known` has done so.

        Raises `JobStoppedError`: the job is to stop, or its budget is used up, or it waits for a batch (`ParkedError`);
        stages that have ended are in the cache.
        """
        began = time.perf_counter()
        plan = self.plans.adding(added.stages) if (added := destination.addition) else self.plans.of(fields)
        key = plan.known.key(destination, columns) if plan.known else ""
        if plan.known and not use_cache:
            # Whatever this run comes to, some of the entry's answers are replaced.
            plan.known.forget(key)
        elif may_be_known:
            (found,) = await self.known([destination], columns=columns, fields=fields, on_stage=on_stage)
            if found is not None:
                return found
        run = Run(
            graph=plan.graph,
            generator=self._generator,
            leads=self._leads.of_run(is_on=terms.tier != BATCH),
            limits=self._limits,
            destination=destination,
            request_priority=next(self._order),
            use_cache=use_cache,
            columns=columns,
            on_stage=on_stage,
            budget=budget,
            terms=terms,
            cancellation=cancellation or Cancellation(""),
            refused=self._refused,
        )
        if added:
            run.themes = [
                Theme(f"t{at}", category, name, "", []) for at, (category, name) in enumerate(added.themes, 1)
            ]
        elif self._evidence is not None:
            with self._profiler.span("web.evidence"):
                run.evidence = await self._evidence.read(destination)
        await run.stages()
        elapsed_ms = (time.perf_counter() - began) * 1000
        processed = run.processed(attempt=attempt, pipeline_version=plan.version(columns), elapsed_ms=elapsed_ms)
        if plan.known and processed.profile:
            plan.known.keep(key, processed.profile, _names(run.themes), run.in_order())
        return processed


def _report(known: Known, destination: Destination, on_stage: StageListener | None) -> None:
    """Book the hits of a profile that the cache has whole, and report all its stages as one."""
    p = known.profile
    if recording := current():
        recording.cached(p.usage)
    if on_stage:
        whole = StageRecord(ALL_STAGES, "ok", p.pipeline_version, p.model, "cached", p.usage, p.elapsed_ms)
        on_stage(destination, whole, p.theme_count, known.names)


def _names(themes: Sequence[Theme]) -> list[str]:
    return [theme.name[:EXCERPT_CHARACTERS] for theme in themes[:EXCERPT_THEMES]]


@dataclass(slots=True, kw_only=True)
class Run:
    """One destination on its way through the graph."""

    graph: Graph
    generator: FocusedLLMGenerator
    leads: RunLeads
    limits: PerformanceSettings
    destination: Destination
    request_priority: int
    use_cache: bool
    columns: tuple[str, ...]
    on_stage: StageListener | None
    budget: JobBudget | None
    terms: Terms
    cancellation: Cancellation
    #: Keeps answers that could not be used; None where none is to be kept.
    refused: RefusedAnswers | None
    #: Set when a stage was stopped or could not be paid for: no other one starts.
    stopped: JobStoppedError | None = None
    #: Stages that wait for a batch, and why the run ends with that.
    parked: dict[str, ParkedError] = field(default_factory=dict)
    themes: list[Theme] = field(default_factory=list)
    #: What the web says of the destination; None where it is not asked.
    evidence: FoundEvidence | None = None
    _outcomes: dict[str, StageOutcome] = field(default_factory=dict)
    _inputs: dict[tuple[object, ...], Input] = field(default_factory=dict)

    def input(self, themes: Sequence[Theme]) -> Input:
        """The data of a prompt about these themes, written once for all stages that ask about them."""
        key = (themes[0].id, themes[-1].id, len(themes)) if themes else ()
        if key not in self._inputs:
            # Only prompts that find themes use it: the eleven others would repeat it for nothing.
            quoted = () if themes or self.evidence is None else self.evidence.quoted()
            self._inputs[key] = Input.of(self.destination, themes, quoted, self.columns)
        return self._inputs[key]

    async def stages(self) -> None:
        """Start every stage the moment what it needs has ended, until none is left.

        Raises `JobStoppedError`: a stage was stopped. What was under way has ended, and is in the cache.
        """
        tasks: set[asyncio.Task[StageOutcome]] = set()
        started: set[str] = set()
        try:
            while True:
                for stage in self._ready(started):
                    started.add(stage.name)
                    tasks.add(asyncio.create_task(StageRun(self, stage).ask(), name=stage.name))
                if not tasks:
                    break
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    outcome = task.result()
                    if outcome.stage.name not in self.parked:
                        self._outcomes[outcome.stage.name] = outcome
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if ended := self.stopped or next(iter(self.parked.values()), None):
            ended.usage = self._usage()
            raise ended
        usages = ((one.stage, one.usage) for one in self._outcomes.values() if one.usage.llm_calls)
        self.leads.learn((stage, usage.prompt_tokens, usage.cached_tokens) for stage, usage in usages)

    def park(self, stage: Stage, error: ParkedError) -> None:
        """Some answers of a stage are to come out of a batch: what needs it does not start."""
        self.parked[stage.name] = error

    def _ready(self, started: set[str]) -> list[Stage]:
        """The stages that start now."""
        ready = [] if self.stopped else self.graph.ready(self._outcomes, started)
        ready = [stage for stage in ready if stage.asks == "new themes" or self._has_themes()]
        return self.leads.first(ready, self._outcomes)

    def _has_themes(self) -> bool:
        """Number the themes when every stage that finds some has ended."""
        if not self.themes:
            found = [outcome for outcome in self.in_order() if outcome.stage.asks == "new themes"]
            self.themes = numbered(found, self.evidence)
        return bool(self.themes)

    def in_order(self) -> list[StageOutcome]:
        return [self._outcomes[name] for name in self.graph.stages if name in self._outcomes]

    def _usage(self) -> Usage:
        return sum((outcome.usage for outcome in self.in_order()), Usage())

    def processed(self, *, attempt: int, pipeline_version: str, elapsed_ms: float) -> Processed:
        """A profile when there is any theme, else a failure that names the first stage's error."""
        in_order = self.in_order()
        usage = self._usage()
        retryable = any(isinstance(outcome.error, RetryableError) for outcome in in_order)
        # Where no stage asks about themes they are not numbered yet.
        if self._has_themes():
            profile = assemble(
                self.destination,
                self.themes,
                {outcome.stage.name: outcome for outcome in in_order},
                pipeline_version=pipeline_version,
                elapsed_ms=elapsed_ms,
                evidence=self.evidence,
            )
            return Processed.of(profile, is_retryable=retryable, attempt=attempt)
        broken = next((outcome for outcome in in_order if outcome.error), None)
        failure = Failure(
            stage=broken.stage.name if broken else "discover",
            error_class=type(broken.error).__name__ if broken else InvalidAnswerError.__name__,
            message=(str(broken.error) if broken else "") or "no stage found a theme",
            attempts=attempt,
        )
        return Processed(None, failure, usage, retryable)
