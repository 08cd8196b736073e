"""What happens to a destination: its stages run as the graph lets them, and their answers become a profile."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, NamedTuple

from config.sections import PerformanceSettings
from config.settings import Settings
from tasks import tracing
from tasks.errors import InvalidAnswerError, JobStoppedError, PermanentError, RetryableError
from tasks.messages import Destination, Failure, PackedProfile, Profile, StageRecord, Theme, Usage
from tasks.packed import UnpackableError, pack_profile
from tasks.storable import MAX_MESSAGE, STORE_ERROR, STORE_STAGE
from workers.llm.budget import JobBudget
from workers.llm.cancellation import Cancellation, CancellationToken
from workers.llm.flights.outcomes import TruncatedError
from workers.llm.generator import FocusedLLMGenerator, StageStats
from workers.llm.spend import USUAL, Spend, Terms
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
from workers.pipeline.schemas import theme_ids

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

        Raises `JobStoppedError`: the job is to stop, or its budget is used up; stages that have ended are in the cache.
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
        run = _Run(
            graph=plan.graph,
            generator=self._generator,
            leads=self._leads.of_run(),
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
class _Run:
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
                    tasks.add(asyncio.create_task(_StageRun(self, stage).ask(), name=stage.name))
                if not tasks:
                    break
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    outcome = task.result()
                    self._outcomes[outcome.stage.name] = outcome
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self.stopped:
            self.stopped.usage = self._usage()
            raise self.stopped
        usages = ((one.stage, one.usage) for one in self._outcomes.values() if one.usage.llm_calls)
        self.leads.learn((stage, usage.prompt_tokens, usage.cached_tokens) for stage, usage in usages)

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


class _StageRun:
    """One stage of a run: asks what the stage asks, and fills its outcome."""

    def __init__(self, run: _Run, stage: Stage) -> None:
        self._run = run
        self._stage = stage
        self._outcome = StageOutcome(stage)
        self._recording = current()
        token = CancellationToken(run.cancellation)
        self._stage_stats = StageStats(
            Spend(terms=run.terms, budget=run.budget, recording=self._recording), token=token
        )

    async def ask(self) -> StageOutcome:
        run, outcome = self._run, self._outcome
        began = time.perf_counter()
        with tracing.span("stage", stage=self._stage.name) as span:
            await self._filled()
            outcome.usage = usage = self._stage_stats.usage()
            if self._recording:
                self._recording.cached(usage)
            outcome.elapsed_ms = (time.perf_counter() - began) * 1000
            if run.on_stage and not run.stopped:
                run.on_stage(run.destination, outcome.record(), len(outcome.values or ()), outcome.excerpt())
            tracing.note(span, source=outcome.source, calls=usage.llm_calls, cache_hits=usage.cache_hits)
        return outcome

    async def _filled(self) -> None:
        run = self._run
        try:
            with run.cancellation.watching(self._stage_stats.token):
                if self._stage.asks == "each theme":
                    await self._each()
                else:
                    await self._all()
        except TruncatedError as exc:
            self._keep_complete(exc)
        except JobStoppedError as exc:
            run.stopped = exc
        except asyncio.CancelledError:
            if not run.cancellation.reason:
                raise
            run.stopped = run.cancellation.error()
        except (PermanentError, RetryableError) as exc:
            self._outcome.fail(exc)

    async def _all(self) -> None:
        is_new = self._stage.asks == "new themes"
        value = await self._answer(() if is_new else self._run.themes)
        self._outcome.values = value["themes"] if is_new else value

    async def _answer(self, themes: Sequence[Theme]) -> Any:
        run, prompt = self._run, self._stage.prompt(self._run.input(themes))
        try:
            completion = await run.generator.answer(
                prompt,
                stage_stats=self._stage_stats,
                request_priority=run.request_priority,
                use_cache=run.use_cache,
            )
        except InvalidAnswerError as exc:
            if run.refused is not None:
                run.refused.keep(run.cancellation.job_id, run.destination, prompt, exc)
            raise
        self._outcome.answered_by(completion)
        return completion.value

    async def _each(self) -> None:
        """Ask about the themes in batches, at once; a batch without an answer leaves its themes unanswered."""
        batches = batches_of(self._run.themes, self._run.limits)
        if len(batches) == 1:
            # The usual case needs no task.
            await self._batch(batches[0])
        else:
            await asyncio.gather(*map(self._batch, batches))
        if self._outcome.values is None:
            self._outcome.unanswered.clear()

    async def _batch(self, themes: Sequence[Theme]) -> None:
        try:
            self._outcome.merge(themes, await self._answer(themes))
        except TruncatedError as exc:
            await self._split(themes, exc)
        except JobStoppedError as exc:
            self._run.stopped = exc
        except (PermanentError, RetryableError) as exc:
            self._outcome.fail(exc, themes)

    async def _split(self, themes: Sequence[Theme], exc: TruncatedError) -> None:
        """Keep what an answer that was cut off had in full, and ask about the rest in two halves."""
        self._outcome.is_cut = True
        complete = exc.complete if isinstance(exc.complete, dict) else {}
        one, names = self._stage.schema(1), theme_ids(len(themes))
        kept = {name: complete[name] for name in names if name in complete and one.is_valid({"t1": complete[name]})}
        self._outcome.merge(themes, kept)
        rest = [theme for name, theme in zip(names, themes, strict=True) if name not in kept]
        if len(rest) == 1 and len(themes) == 1:
            self._outcome.fail(exc, rest)
            return
        middle = (len(rest) + 1) // 2
        await asyncio.gather(*(self._batch(half) for half in (rest[:middle], rest[middle:]) if half))

    def _keep_complete(self, exc: TruncatedError) -> None:
        """A discovery that was cut off twice still has its complete themes, if they are enough."""
        self._outcome.is_cut = True
        stage, complete = self._stage, exc.complete
        if stage.asks == "new themes" and isinstance(complete, dict) and stage.schema(0).is_valid(complete):
            self._outcome.values = complete["themes"]
        else:
            self._outcome.fail(exc)


def batches_of(themes: Sequence[Theme], limits: PerformanceSettings) -> list[Sequence[Theme]]:
    """The themes as they are asked about: in batches, or all at once where batching is off."""
    size = limits.theme_batch_size if limits.enable_intelligent_batching else len(themes)
    return [themes[start : start + size] for start in range(0, len(themes), size)]
