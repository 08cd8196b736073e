"""What happens to a destination: its stages run as the graph lets them, and their answers become a profile."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from config.sections import PerformanceSettings
from config.settings import Settings
from tasks import tracing
from tasks.errors import InvalidAnswerError, JobStoppedError, PermanentError, RetryableError, ThemesError
from tasks.messages import Destination, Failure, Profile, StageRecord, Theme, Usage
from workers.llm.budget import JobBudget
from workers.llm.cancellation import Halt, Ticket
from workers.llm.flights.outcomes import TruncatedError
from workers.llm.generator import Account, Completion, FocusedLLMGenerator
from workers.llm.spend import Spend
from workers.observe.call_journal import current
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.assembly import StageOutcome, assemble, numbered
from workers.pipeline.evidence import Evidence, EvidenceReader
from workers.pipeline.graph import Graph
from workers.pipeline.prompts import Input, Stage, pipeline_version
from workers.pipeline.schemas import theme_ids

#: Told of each stage as it ends: the destination, the stage's record, how many themes it found or described, and the
#: first of what it found (see `excerpt`).
StageListener = Callable[[Destination, StageRecord, int, list[str]], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A profile or a failure, what it cost, and whether trying again may give more."""

    profile: Profile | None
    failure: Failure | None
    usage: Usage
    elapsed_ms: float
    is_retryable: bool


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
    ) -> None:
        self._evidence = evidence
        self._graph = graph
        self._generator = generator
        self._version = pipeline_version(graph.stages.values())
        self._profiler = profiler
        self._limits = settings.performance_optimization
        self._order = count()

    def __repr__(self) -> str:
        return f"<FocusedPromptProcessor {self._graph!r} version={self._version}>"

    def version(self, columns: tuple[str, ...] = ()) -> str:
        """The version of the prompts that show these further columns of the input."""
        return pipeline_version(self._graph.stages.values(), columns) if columns else self._version

    async def process(
        self,
        destination: Destination,
        *,
        use_cache: bool = True,
        columns: tuple[str, ...] = (),
        attempt: int = 1,
        on_stage: StageListener | None = None,
        budget: JobBudget | None = None,
        halt: Halt | None = None,
    ) -> Outcome:
        """The outcome for one destination; errors of the LLM end up in it, they are not raised.

        Raises:
            JobStoppedError: `halt` came, or `budget` did not last; stages that have ended are in the cache.
        """
        began = time.perf_counter()
        run = _Run(
            self,
            destination,
            rank=next(self._order),
            use_cache=use_cache,
            columns=columns,
            on_stage=on_stage,
            budget=budget,
            halt=halt or Halt(""),
        )
        if self._evidence is not None:
            with self._profiler.span("web.evidence"):
                run.evidence = await self._evidence.read(destination)
        await run.stages()
        return run.outcome(attempt=attempt, elapsed_ms=(time.perf_counter() - began) * 1000)

    async def ask(self, stage: Stage, run: "_Run") -> StageOutcome:
        """The outcome of one stage of a run."""
        with tracing.span("stage", stage=stage.name) as span:
            outcome = await self._outcome(stage, run)
            tracing.note(
                span, source=outcome.source, calls=outcome.usage.llm_calls, cache_hits=outcome.usage.cache_hits
            )
            return outcome

    async def _outcome(self, stage: Stage, run: "_Run") -> StageOutcome:
        began = time.perf_counter()
        outcome = StageOutcome(stage)
        recording = current()
        account = Account(Spend(budget=run.budget, recording=recording), ticket=Ticket(run.halt))
        try:
            with run.halt.heeded(account.ticket):
                await self._asked(stage, run, account, outcome)
        except TruncatedError as exc:
            self._keep_complete(stage, exc, outcome)
        except JobStoppedError as exc:
            run.stopped = exc
        except asyncio.CancelledError:
            if not run.halt.reason:
                raise
            run.stopped = run.halt.error()
        except (PermanentError, RetryableError) as exc:
            outcome.error, outcome.reason = exc, _reason(exc)
        outcome.usage = account.usage()
        if recording:
            recording.cached(outcome.usage)
        outcome.elapsed_ms = (time.perf_counter() - began) * 1000
        if run.on_stage and not run.stopped:
            run.on_stage(run.destination, outcome.record(), len(outcome.values or ()), outcome.excerpt())
        return outcome

    async def _asked(self, stage: Stage, run: "_Run", account: Account, outcome: StageOutcome) -> None:
        """Ask what a stage asks."""
        if stage.asks == "new themes":
            completion = await self._answer(stage, run, (), account)
            _note(outcome, completion)
            outcome.values = completion.value["themes"]
        elif stage.asks == "all themes":
            completion = await self._answer(stage, run, run.themes, account)
            _note(outcome, completion)
            outcome.values = completion.value
        else:
            await self._each(stage, run, account, outcome)

    async def _answer(self, stage: Stage, run: "_Run", themes: Sequence[Theme], account: Account) -> Completion:
        prompt = stage.prompt(run.input(themes))
        return await self._generator.answer(prompt, account=account, rank=run.rank, use_cache=run.use_cache)

    async def _each(self, stage: Stage, run: "_Run", account: Account, outcome: StageOutcome) -> None:
        """Ask about the themes in batches, at once; a batch without an answer leaves its themes unanswered."""
        batches = batches_of(run.themes, self._limits)
        await asyncio.gather(*(self._batch(stage, run, batch, account, outcome) for batch in batches))
        if outcome.values is None:
            outcome.unanswered.clear()

    async def _batch(
        self, stage: Stage, run: "_Run", themes: Sequence[Theme], account: Account, outcome: StageOutcome
    ) -> None:
        try:
            completion = await self._answer(stage, run, themes, account)
        except TruncatedError as exc:
            await self._split(stage, run, themes, exc, account, outcome)
        except JobStoppedError as exc:
            run.stopped = exc
        except (PermanentError, RetryableError) as exc:
            outcome.error, outcome.reason = exc, _reason(exc)
            outcome.unanswered.update((theme.id, outcome.reason) for theme in themes)
        else:
            _note(outcome, completion)
            _merge(outcome, themes, completion.value)

    async def _split(  # noqa: PLR0917  # the same five as its caller, and the error
        self,
        stage: Stage,
        run: "_Run",
        themes: Sequence[Theme],
        exc: TruncatedError,
        account: Account,
        outcome: StageOutcome,
    ) -> None:
        """Keep what an answer that was cut off had in full, and ask about the rest in two halves."""
        complete = exc.complete if isinstance(exc.complete, dict) else {}
        one = stage.schema(1)
        kept = {n: complete[n] for n in theme_ids(len(themes)) if n in complete and one.is_valid({"t1": complete[n]})}
        _merge(outcome, themes, kept)
        rest = [theme for n, theme in zip(theme_ids(len(themes)), themes, strict=True) if n not in kept]
        if len(rest) == 1 and len(themes) == 1:
            outcome.error, outcome.reason = exc, _reason(exc)
            outcome.unanswered[rest[0].id] = _reason(exc)
            return
        middle = (len(rest) + 1) // 2
        halves = [half for half in (rest[:middle], rest[middle:]) if half]
        await asyncio.gather(*(self._batch(stage, run, half, account, outcome) for half in halves))

    @staticmethod
    def _keep_complete(stage: Stage, exc: TruncatedError, outcome: StageOutcome) -> None:
        """A discovery that was cut off twice still has its complete themes, if they are enough."""
        outcome.error, outcome.reason = exc, _reason(exc)
        if stage.asks == "new themes" and isinstance(exc.complete, dict) and stage.schema(0).is_valid(exc.complete):
            outcome.values = exc.complete["themes"]
            outcome.error = outcome.reason = None


class _Run:
    """One destination on its way through the graph."""

    def __init__(
        self,
        processor: FocusedPromptProcessor,
        destination: Destination,
        *,
        rank: int,
        use_cache: bool,
        columns: tuple[str, ...],
        on_stage: StageListener | None,
        budget: JobBudget | None,
        halt: Halt,
    ) -> None:
        self.destination = destination
        self.rank = rank
        self.use_cache = use_cache
        self.columns = columns
        self.on_stage = on_stage
        self.budget = budget
        self.halt = halt
        #: Set when a stage was stopped or could not be paid for: no other one starts.
        self.stopped: JobStoppedError | None = None
        self.themes: list[Theme] = []
        #: What the web says of the destination; None where it is not asked.
        self.evidence: Evidence | None = None
        self._processor = processor
        self._graph = processor._graph  # noqa: SLF001  # the two are one machine in two pieces
        self._outcomes: dict[str, StageOutcome] = {}
        self._inputs: dict[tuple[object, ...], Input] = {}

    def input(self, themes: Sequence[Theme]) -> Input:
        """The data of a prompt about these themes, written once for all stages that ask about them."""
        key = (themes[0].id, themes[-1].id, len(themes)) if themes else ()
        if key not in self._inputs:
            # Only those who look for themes read it: eleven prompts would repeat it for nothing.
            quoted = () if themes or self.evidence is None else self.evidence.quoted()
            self._inputs[key] = Input.of(self.destination, themes, quoted, self.columns)
        return self._inputs[key]

    async def stages(self) -> None:
        """Start every stage the moment what it needs has ended, until none is left or there is nothing to go on.

        Raises:
            JobStoppedError: a stage was not allowed to go on. What was under way has ended, and is in the cache.
        """
        tasks: set[asyncio.Task[StageOutcome]] = set()
        started: set[str] = set()
        try:
            while True:
                for stage in () if self.stopped else self._graph.ready(self._outcomes, started):
                    if stage.asks != "new themes" and not self._has_themes():
                        continue
                    started.add(stage.name)
                    tasks.add(asyncio.create_task(self._processor.ask(stage, self), name=stage.name))
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

    def _has_themes(self) -> bool:
        """Number the themes when every stage that finds some has ended."""
        if not self.themes:
            found = [outcome for outcome in self._in_order() if outcome.stage.asks == "new themes"]
            self.themes = numbered(found, self.evidence)
        return bool(self.themes)

    def _in_order(self) -> list[StageOutcome]:
        return [self._outcomes[name] for name in self._graph.stages if name in self._outcomes]

    def _usage(self) -> Usage:
        return sum((outcome.usage for outcome in self._in_order()), Usage())

    def outcome(self, *, attempt: int, elapsed_ms: float) -> Outcome:
        """A profile when there is any theme, else a failure that names the first stage's error."""
        in_order = self._in_order()
        usage = self._usage()
        retryable = any(isinstance(outcome.error, RetryableError) for outcome in in_order)
        # Where no stage asks about themes nobody has numbered them yet.
        if self._has_themes():
            profile = assemble(
                self.destination,
                self.themes,
                {outcome.stage.name: outcome for outcome in in_order},
                pipeline_version=self._processor.version(self.columns),
                elapsed_ms=elapsed_ms,
                evidence=self.evidence,
            )
            return Outcome(profile, None, usage, elapsed_ms, is_retryable=retryable)
        broken = next((outcome for outcome in in_order if outcome.error), None)
        failure = Failure(
            stage=broken.stage.name if broken else "discover",
            error_class=type(broken.error).__name__ if broken else InvalidAnswerError.__name__,
            message=(broken.reason if broken else None) or "no stage found a theme",
            attempts=attempt,
        )
        return Outcome(None, failure, usage, elapsed_ms, is_retryable=retryable)


def batches_of(themes: Sequence[Theme], limits: PerformanceSettings) -> list[Sequence[Theme]]:
    """The themes as they are asked about: in batches, or all at once where batching is off."""
    size = limits.theme_batch_size if limits.enable_intelligent_batching else len(themes)
    return [themes[start : start + size] for start in range(0, len(themes), size)]


def _reason(exc: ThemesError) -> str:
    return f"{type(exc).__name__}: {exc}"


def _note(outcome: StageOutcome, completion: Completion) -> None:
    """Which model answered, and from where."""
    outcome.model = completion.model
    same = outcome.source in {"none", completion.source}
    outcome.source = completion.source if same else "mixed"


def _merge(outcome: StageOutcome, themes: Sequence[Theme], answered: dict[str, Any]) -> None:
    """Enter fields that were answered by a batch's own numbers under the profile's."""
    if not answered:
        return
    outcome.values = outcome.values or {}
    for number, theme in zip(theme_ids(len(themes)), themes, strict=True):
        if number in answered:
            outcome.values[theme.id] = answered[number]
            outcome.unanswered.pop(theme.id, None)
