"""What a job would ask and cost, from a sample of its destinations and what the cache holds; nothing is asked.

For each destination in the sample the prompts are made as the processor makes them and looked up: those that find
themes, and where all of these are cached, those about the themes. For the sample the hits are exact. The rest is
estimated by what the stage took in earlier jobs with the same model. Without one, prompts are estimated by their
length, themes by how many a stage finds, answers by the mean of the stage's cached ones, else by the limiter's first
guess.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean, stdev
from typing import Any, Final

from redis import Redis

from config.endpoints import BATCH
from config.settings import Settings
from tasks import keys
from tasks.errors import ConfigError
from tasks.messages import Destination
from tasks.prices.rates import TokenCounts
from tasks.prices.table import PriceTable
from tasks.prices.tiers import TierPrices
from tasks.texts import count
from workers.llm.cache.codec import CodecError
from workers.llm.cache.tiers import CachedCompletion, decode
from workers.llm.cost import FIRST_GUESS, prompt_tokens
from workers.llm.endpoints.prompt import Prompt, sampling_of
from workers.llm.endpoints.registry import model_for
from workers.pipeline.assembly import StageOutcome, numbered
from workers.pipeline.fields import field_of, stages_for
from workers.pipeline.prompts import Input, Stage, stages_of
from workers.pipeline.stage_run import batches_of
from workers.pipeline.throughput import Duration, WorkerCapacity, duration_of
from workers.results.queries.earlier import Earlier, StageMeasured

#: Destinations in a sample, at most.
SAMPLE: Final = 200
#: Keys that one MGET asks for.
PAGE: Final = 500
#: Stands for the name of a theme that is not found yet, and has about the length of one.
UNKNOWN_NAME: Final = "a theme yet to be found."


#: Looks up packed completions: what is stored under each key, None where there is nothing.
LookUp = Callable[[Sequence[str]], Sequence[bytes | None]]
NOTHING_EARLIER: Final = Earlier()


@dataclass(slots=True)
class Sample:
    """At most `size` rows of a stream of any length, evenly spread, the same ones every time."""

    size: int = SAMPLE
    rows: list[Destination] = field(default_factory=list)
    seen: int = 0
    _step: int = 1

    def add(self, row: Destination) -> None:
        """Take in the next row: every `_step`-th is kept, and when there are too many every second one goes."""
        if self.seen % self._step == 0:
            if len(self.rows) == self.size:
                self.rows = self.rows[::2]
                self._step *= 2
            if self.seen % self._step == 0:
                self.rows.append(row)
        self.seen += 1


@dataclass(frozen=True, slots=True)
class Amount:
    """An extrapolated total and its standard error, which is 0 where the sample is everything."""

    expected: float
    plus_minus: float = 0.0


@dataclass(frozen=True, slots=True)
class StageForecast:
    """What one stage comes to for all destinations, by expectation. `cost_usd` None: the model has no price."""

    stage: str
    field: str
    model: str | None
    calls: float
    cache_hits: float
    prompt_tokens: float
    completion_tokens: float
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a job comes to. `notes` say what is not known and why, in sentences for people."""

    destinations: int
    sample: int
    is_cache_known: bool
    calls: Amount
    cache_hits: Amount
    prompt_tokens: Amount
    completion_tokens: Amount
    cost_usd: Amount | None
    #: Seconds that the job takes once workers have begun with it.
    seconds: float | None
    stages: list[StageForecast]
    notes: list[str]
    #: What the numbers come from: measured, and where, or assumed.
    basis: list[str]


@dataclass(slots=True)
class Question:
    """One prompt of one destination, and its completion where that is cached.

    Where it is not `is_exact`, it is about themes that are not known yet: only its length means something.
    """

    stage: Stage
    prompt: Prompt
    is_exact: bool = True
    known: CachedCompletion | None = None


@dataclass(frozen=True, slots=True)
class _Cost:
    """What one question, or some together, come to. `usd` None: a price is not known."""

    calls: float = 0
    hits: float = 0
    prompt: float = 0
    completion: float = 0
    usd: float | None = 0.0

    def __add__(self, other: "_Cost") -> "_Cost":
        usd = None if self.usd is None or other.usd is None else self.usd + other.usd
        return _Cost(
            self.calls + other.calls,
            self.hits + other.hits,
            self.prompt + other.prompt,
            self.completion + other.completion,
            usd,
        )


def model_of(settings: Settings, stage: Stage) -> str | None:
    """The model that answers a stage; None where none is set."""
    try:
        return model_for(settings.llm, stage.name, stage.model)
    except ConfigError:
        return None


class Forecaster:
    """Forecasts jobs under some settings.

    Args:
        settings: of the jobs.
        redis: has the heartbeats of the workers; None: they are not read.
        use_cache: whether the jobs take answers from the cache.
        columns: of the input, sent to the model too.
        cached: looks up packed completions by key; None: Redis does, where there is one.
        earlier: what earlier jobs have measured.
        fields: that the jobs make; none for all.
        tier: at which the jobs' calls are bought; empty: as the settings say.
    """

    def __init__(
        self,
        settings: Settings,
        redis: Redis | None,
        *,
        use_cache: bool = True,
        columns: Sequence[str] = (),
        cached: LookUp | None = None,
        earlier: Earlier = NOTHING_EARLIER,
        fields: Sequence[str] = (),
        tier: str = "",
    ) -> None:
        self._tier = tier or settings.llm.tier
        self._factor = TierPrices(settings.llm).factor(self._tier)
        self._settings = settings
        self._redis = redis
        self._cached = cached if cached or redis is None else partial(_in_redis, redis)
        self._earlier = earlier
        self._sampling = sampling_of(settings.llm)
        self._prices = PriceTable(settings.llm)
        self._stages = stages_for(stages_of(settings), fields)
        self._finding = [stage for stage in self._stages if stage.asks == "new themes"]
        self._about = [stage for stage in self._stages if stage.asks != "new themes"]
        self._use_cache = use_cache
        self._columns = columns
        self._notes: list[str] = []

    def __repr__(self) -> str:
        return f"<Forecaster stages={len(self._stages)} redis={self._redis is not None}>"

    def forecast(self, sample: Sample) -> Forecast:
        """The forecast for all rows that a sample has seen. Raises `RedisError`."""
        self._notes = []
        looked_at = self._can_look()
        asked = [self._finding_questions(row) for row in sample.rows]
        self._look_up(asked, looked_at=looked_at)
        then = [self._about_questions(row, found) for row, found in zip(sample.rows, asked, strict=True)]
        self._look_up(then, looked_at=looked_at)
        questions = [first + second for first, second in zip(asked, then, strict=True)]
        return self._extrapolated(questions, sample.seen, looked_at=looked_at)

    def _can_look(self) -> bool:
        """Whether the cache can be looked at; else a note says why not."""
        reason = None
        if not self._use_cache:
            reason = "--no-cache asks for everything again"
        elif any(model_of(self._settings, stage) is None for stage in self._stages):
            reason = "llm.model is not set (THEMES_MODEL), so the cache was not looked at"
        elif not self._settings.performance_optimization.enable_persistent_cache:
            reason = "enable_persistent_cache is off, so there is no shared cache to look at"
        elif self._cached is None:
            reason = "Redis cannot be reached, so the cache was not looked at"
        if reason:
            self._notes.append(reason)
        return reason is None

    def _finding_questions(self, row: Destination) -> list[Question]:
        about = Input.of(row, columns=self._columns)
        return [Question(stage, stage.prompt(about)) for stage in self._finding]

    def _about_questions(self, row: Destination, found: Sequence[Question]) -> list[Question]:
        themes = numbered([_outcome(question) for question in found])
        batches = batches_of(themes, self._settings.performance_optimization)
        whole = Input.of(row, themes, columns=self._columns)
        parts = [Input.of(row, batch, columns=self._columns) for batch in batches] if len(batches) > 1 else [whole]
        is_exact = all(question.known for question in found)
        return [
            Question(stage, stage.prompt(about), is_exact)
            for stage in self._about
            for about in (parts if stage.asks == "each theme" else [whole])
        ]

    def _look_up(self, asked: Iterable[Sequence[Question]], *, looked_at: bool) -> None:
        if self._cached is None or not looked_at:
            return
        questions = [question for row in asked for question in row if question.is_exact]
        values = self._cached([self._key(question) for question in questions])
        for question, packed in zip(questions, values, strict=True):
            question.known = _completion(question, packed)

    def _key(self, question: Question) -> str:
        model = model_of(self._settings, question.stage) or ""
        return question.prompt.key(model=model, sampling=self._sampling)

    def _extrapolated(self, asked: Sequence[Sequence[Question]], rows: int, *, looked_at: bool) -> Forecast:
        answers = self._answer_tokens(asked)
        by_row, by_stage = [], {stage.name: _Cost() for stage in self._stages}
        for questions in asked:
            parts = Counter(question.stage.name for question in questions)
            costs = [self._cost(one, answers[one.stage.name], parts=parts[one.stage.name]) for one in questions]
            by_row.append(sum(costs, _Cost()))
            for question, cost in zip(questions, costs, strict=True):
                by_stage[question.stage.name] += cost
        factor = rows / len(asked) if asked else 0.0
        calls, prompt, completion = (
            _total([getattr(row, name) for row in by_row], rows) for name in ("calls", "prompt", "completion")
        )
        self._note_guesses(asked, by_stage)
        usd = [row.usd for row in by_row if row.usd is not None]
        duration = self._duration(calls.expected, prompt.expected + completion.expected)
        self._notes += [duration.reason] if duration.reason else []
        return Forecast(
            destinations=rows,
            sample=len(asked),
            is_cache_known=looked_at,
            calls=calls,
            cache_hits=_total([row.hits for row in by_row], rows),
            prompt_tokens=prompt,
            completion_tokens=completion,
            cost_usd=_total(usd, rows) if len(usd) == len(by_row) else None,
            seconds=duration.seconds,
            stages=[self._stage(stage, by_stage[stage.name], factor) for stage in self._stages],
            notes=[*self._notes, *self._unpriced()],
            basis=[
                self._basis(by_stage),
                *([f"prices: of the tier {self._tier}, {self._factor:g} of standard"] if self._factor != 1 else []),
                *([f"time: {duration.basis}"] if duration.basis else []),
            ],
        )

    def _measured(self, stage: Stage) -> StageMeasured | None:
        return self._earlier.of(stage.name, model_of(self._settings, stage))

    def _basis(self, by_stage: dict[str, _Cost]) -> str:
        asked = [stage for stage in self._stages if by_stage[stage.name].calls]
        measured = [stage for stage in asked if self._measured(stage)]
        where = f"measured in {count(self._earlier.jobs, 'earlier job')}"
        if not asked:
            said = "known: everything is cached"
        elif len(measured) == len(asked):
            said = where
        elif measured:
            said = f"{where} for {len(measured)} of {count(len(asked), 'stage')}, assumed for the others"
        else:
            said = "assumed: no earlier job has asked this of this model"
        return f"calls, tokens and cost: {said}"

    def _answer_tokens(self, asked: Sequence[Sequence[Question]]) -> dict[str, float]:
        seen: dict[str, list[int]] = {}
        for question in (question for row in asked for question in row):
            if question.known:
                seen.setdefault(question.stage.name, []).append(question.known.completion_tokens)
        return {
            stage.name: fmean(seen[stage.name]) if stage.name in seen else stage.max_tokens * FIRST_GUESS
            for stage in self._stages
        }

    def _note_guesses(self, asked: Sequence[Sequence[Question]], by_stage: dict[str, _Cost]) -> None:
        seen = {question.stage.name for row in asked for question in row if question.known}
        seen |= {stage.name for stage in self._stages if self._measured(stage)}
        guessed = [name for name, cost in by_stage.items() if cost.calls and name not in seen]
        if guessed:
            self._notes.append(
                f"the length of answers is a guess for {len(guessed)} of {len(by_stage)} stages, half of max_tokens: "
                "none of theirs is cached"
            )

    def _cost(self, question: Question, answer_tokens: float, *, parts: int) -> _Cost:
        """What a question comes to, which is one of the `parts` of its stage."""
        if question.known:
            return _Cost(hits=1)
        calls, tokens = 1.0, float(prompt_tokens(question.prompt))
        if measured := self._measured(question.stage):
            calls, tokens = measured.calls / parts, measured.prompt_tokens / parts
            answer_tokens = measured.completion_tokens / parts
        model = model_of(self._settings, question.stage) or ""
        usd = self._prices.usd(model, TokenCounts(tokens, answer_tokens))
        return _Cost(calls, 0, tokens, answer_tokens, None if usd is None else usd * self._factor)

    def _stage(self, stage: Stage, cost: _Cost, factor: float) -> StageForecast:
        return StageForecast(
            stage=stage.name,
            field=field_of(stage),
            model=model_of(self._settings, stage),
            calls=round(cost.calls * factor, 1),
            cache_hits=round(cost.hits * factor, 1),
            prompt_tokens=round(cost.prompt * factor),
            completion_tokens=round(cost.completion * factor),
            cost_usd=None if cost.usd is None else round(cost.usd * factor, 6),
        )

    def _duration(self, calls: float, tokens: float) -> Duration:
        if self._tier == BATCH:
            said = "how long batches take is the provider's choice: an hour or two as a rule, at most a day each"
            return Duration(None, reason=said)
        fleet = None if self._redis is None else WorkerCapacity.seen(self._redis)
        return duration_of(calls, tokens, settings=self._settings.llm, fleet=fleet, earlier=self._earlier)

    def _unpriced(self) -> list[str]:
        models = {model_of(self._settings, stage) for stage in self._stages}
        if None in models:
            return ["the cost is unknown: llm.model is not set (THEMES_MODEL)"]
        unpriced = self._prices.unpriced(model for model in models if model)
        return [f"the cost is unknown: no price for {', '.join(unpriced)}; set llm.prices"] if unpriced else []


def _in_redis(redis: Redis, wanted: Sequence[str]) -> list[bytes | None]:
    with redis.pipeline(transaction=False) as pipeline:
        for start in range(0, len(wanted), PAGE):
            pipeline.mget([keys.cache(key) for key in wanted[start : start + PAGE]])
        return [value for page in pipeline.execute() for value in page]


def _completion(question: Question, packed: Any) -> CachedCompletion | None:
    """What a worker would take from the cache: readable, and valid now."""
    if packed is None:
        return None
    try:
        known = decode(packed)
    except CodecError:
        return None
    return known if question.prompt.schema.is_valid(known.value) else None


def _outcome(question: Question) -> StageOutcome:
    """The themes of a stage as they are cached, or as many unknown ones as it finds in the mean."""
    if question.known:
        return StageOutcome(question.stage, values=question.known.value["themes"])
    unknown = {"name": UNKNOWN_NAME, "description": UNKNOWN_NAME, "citations": []}
    return StageOutcome(question.stage, values=[unknown] * math.ceil(sum(question.stage.count) / 2))


def _total(values: Sequence[float], count: int) -> Amount:
    """The total over `count` rows of which these are a sample without replacement (Cochran 1977, section 2.6)."""
    if not values:
        return Amount(0.0)
    left_out = 1 - len(values) / count
    error = count * stdev(values) / math.sqrt(len(values)) * math.sqrt(left_out) if len(values) > 1 else 0.0
    return Amount(round(fmean(values) * count, 6), round(error, 6))
