"""What one model costs at one moment, and what a call comes to."""

import functools
import math
from datetime import UTC, datetime, time, timedelta
from fractions import Fraction
from typing import Final, Self

import msgspec

from config.values import Price
from tasks.prices.shapes import Conditional, Constraint, Listed, Model, Tiered

MILLION: Final = 1_000_000
#: Moments of a call's time at which its price may begin to hold; those that change within a day hold for hours.
_CALL: Final = (timedelta(), timedelta(minutes=30), timedelta(hours=1))
#: The tokens of a prompt from beyond which on US dollars per million of them are asked, ascending; the first is -1.
Rate = tuple[tuple[int, float], ...]


class TokenCounts(msgspec.Struct, frozen=True):
    """What a provider bills. The prompt holds the cached and the written tokens, the completion those of reasoning."""

    prompt: float = 0
    completion: float = 0
    cached: float = 0
    #: Written into the provider's cache; of these, those that stay there for an hour.
    written: float = 0
    written_1h: float = 0
    reasoning: float = 0


class Rates(msgspec.Struct, frozen=True):
    """US dollars per million tokens of each kind; `call`: per call."""

    prompt: Rate
    completion: Rate
    cached: Rate
    written: Rate
    written_1h: Rate
    reasoning: Rate
    call: float = 0.0

    @classmethod
    def of_price(cls, price: Price) -> Self:
        prompt, completion = _flat(price.input_usd), _flat(price.output_usd)
        written = _flat(price.cache_write_usd, prompt)
        return cls(prompt, completion, _flat(price.cached_input_usd, prompt), written, written, completion)

    @classmethod
    def of_listed(cls, listed: Listed) -> Self | None:
        """The prices of a list; None where it has none for tokens."""
        prompt, completion = _rate(listed, "input_mtok"), _rate(listed, "output_mtok")
        if prompt is None and completion is None:
            return None
        prompt, completion = prompt or _flat(0.0), completion or _flat(0.0)
        written = _rate(listed, "cache_write_mtok") or prompt
        calls = _rate(listed, "requests_kcount")
        return cls(
            prompt, completion, _rate(listed, "cache_read_mtok") or prompt, written,
            _rate(listed, "cache_write_1h_mtok") or written, _rate(listed, "output_reasoning_mtok") or completion,
            calls[0][1] / 1000 if calls else 0.0,
        )  # fmt: skip

    def usd(self, counts: TokenCounts) -> float:
        tokens = counts.prompt
        return (
            (tokens - counts.cached - counts.written) * _at(self.prompt, tokens)
            + counts.cached * _at(self.cached, tokens)
            + (counts.written - counts.written_1h) * _at(self.written, tokens)
            + counts.written_1h * _at(self.written_1h, tokens)
            + (counts.completion - counts.reasoning) * _at(self.completion, tokens)
            + counts.reasoning * _at(self.reasoning, tokens)
        ) / MILLION + self.call

    def most_nano(self, prompt: int, completion: int) -> int:
        """Nano-dollars that a call of at most so many tokens can cost: each token at the dearest price it may have."""
        asked = max(_most(each, prompt) for each in (self.prompt, self.cached, self.written, self.written_1h))
        told = max(_most(each, prompt) for each in (self.completion, self.reasoning))
        # Dollars per million tokens are a thousand nano-dollars a token.
        tokens = 1000 * (prompt * _exact(asked) + completion * _exact(told))
        return math.ceil(tokens + 1_000_000_000 * _exact(self.call))


class Offer(msgspec.Struct, frozen=True):
    """The prices of one model at one server, `source`: where they are from, in words."""

    model: str
    source: str
    #: With what each needs to hold; later ones win, and where none holds the first does.
    dated: tuple[tuple[Constraint | None, Rates], ...]
    provider: str = ""

    @classmethod
    def of_model(cls, model: Model, provider: str, source: str) -> Self | None:
        """None where the list has the model, but no price of it."""
        prices = model.prices if isinstance(model.prices, list) else [Conditional(model.prices)]
        dated = [(each.constraint, Rates.of_listed(each.prices)) for each in prices]
        known = tuple((constraint, rates) for constraint, rates in dated if rates is not None)
        return cls(model.id, source, known, provider) if known and len(known) == len(dated) else None

    def at(self, moment: datetime | None = None) -> Rates:
        """The prices at a moment, by default now."""
        if len(self.dated) > 1:
            moment = moment or datetime.now(UTC)
            for constraint, rates in reversed(self.dated):
                if constraint is None or _holds(constraint, moment):
                    return rates
        return self.dated[0][1]

    def most_nano(self, prompt: int, completion: int) -> int:
        """The most that a call which begins now can cost."""
        now = datetime.now(UTC)
        rates = {self.at(now + later) for later in _CALL} if len(self.dated) > 1 else (self.at(),)
        return max(each.most_nano(prompt, completion) for each in rates)


def _flat(usd: float | None, otherwise: Rate = ()) -> Rate:
    return otherwise if usd is None else ((-1, float(usd)),)


def _rate(listed: Listed, name: str) -> Rate | None:
    price = listed.get(name)
    if price is None:
        return None
    if isinstance(price, Tiered):
        steps = sorted((tier.start, float(tier.price)) for tier in price.tiers)
        return (-1, float(price.base)), *steps
    return _flat(price)


def _at(rate: Rate, prompt: float) -> float:
    """A price by the length of the prompt: beyond a step all tokens have its price."""
    for start, usd in reversed(rate):
        if prompt > start:
            return usd
    return rate[0][1]


def _most(rate: Rate, prompt: int) -> float:
    return max(usd for start, usd in rate if prompt > start)


#: A price as it was written, not its binary neighbour.
_exact: Final = functools.lru_cache(maxsize=1000)(lambda usd: Fraction(str(usd)))


def _holds(constraint: Constraint, moment: datetime) -> bool:
    if constraint.start_date is not None:
        return moment.date() >= constraint.start_date
    begin, end = (_utc(each) for each in (constraint.start_time, constraint.end_time))
    now = moment.timetz()
    return begin <= now < end if begin <= end else now >= begin or now < end


def _utc(value: time | None) -> time:
    value = value or time(0)
    if value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    return datetime.combine(datetime(1970, 1, 2, tzinfo=UTC), value).astimezone(UTC).timetz()
