"""One stage of a destination's run: what it asks, and what its answers make of the themes."""

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from config.sections import PerformanceSettings
from tasks import tracing
from tasks.errors import InvalidAnswerError, JobStoppedError, ParkedError, PermanentError, RetryableError
from tasks.messages import Theme, Usage
from workers.llm.cancellation import CancellationToken
from workers.llm.completion import StageStats
from workers.llm.flights.outcomes import TruncatedError
from workers.llm.spend import Spend
from workers.observe.call_journal import current
from workers.pipeline.assembly import StageOutcome
from workers.pipeline.prompts import Stage
from workers.pipeline.schemas import theme_ids

if TYPE_CHECKING:
    from workers.pipeline.processor import Run


class StageRun:
    """One stage of a run: asks what the stage asks, and fills its outcome."""

    def __init__(self, run: "Run", stage: Stage) -> None:
        self._run = run
        self._stage = stage
        self._outcome = StageOutcome(stage)
        self._recording = current()
        #: Some of its questions wait for a batch.
        self._parked: ParkedError | None = None
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
            # One that waits for a batch has not ended, and one that was told before a wait is not told again.
            is_told = self._stage.name in run.parked or (usage == Usage() and outcome.error is None)
            if run.on_stage and not run.stopped and not is_told:
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
        except ParkedError as exc:
            run.park(self._stage, exc)
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
        if self._parked:
            raise self._parked
        if self._outcome.values is None:
            self._outcome.unanswered.clear()

    async def _batch(self, themes: Sequence[Theme]) -> None:
        try:
            self._outcome.merge(themes, await self._answer(themes))
        except TruncatedError as exc:
            await self._split(themes, exc)
        except ParkedError as exc:
            self._parked = exc
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
