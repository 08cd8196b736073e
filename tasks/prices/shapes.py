"""The shapes of genai-prices' data, as its JSON files have it. What has no part in the price of a text is left out."""

import datetime as dt
from typing import Annotated

import msgspec

#: US dollars per million tokens.
Usd = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]


class Tier(msgspec.Struct, frozen=True):
    """From more than `start` tokens of the prompt on, every token of the call has this price."""

    start: Annotated[int, msgspec.Meta(ge=0)]
    price: Usd


class Tiered(msgspec.Struct, frozen=True):
    base: Usd
    tiers: list[Tier] = []


class Constraint(msgspec.Struct, frozen=True, omit_defaults=True):
    """When a price holds: from a date on, or at these times of day; UTC."""

    start_date: dt.date | None = None
    start_time: dt.time | None = None
    end_time: dt.time | None = None


#: `input_mtok` and the like -> US dollars.
Listed = dict[str, Usd | Tiered | None]


class Conditional(msgspec.Struct, frozen=True):
    prices: Listed
    constraint: Constraint | None = None


class Match(msgspec.Struct, frozen=True, omit_defaults=True, rename={"or_": "or", "and_": "and"}):
    """One clause about a model's name; which, its one member says."""

    equals: str | None = None
    starts_with: str | None = None
    ends_with: str | None = None
    contains: str | None = None
    regex: str | None = None
    or_: "list[Match] | None" = None
    and_: "list[Match] | None" = None


class Model(msgspec.Struct, frozen=True):
    id: str
    match: Match
    #: Later ones win.
    prices: Listed | list[Conditional]


class Provider(msgspec.Struct, frozen=True):
    """`fallback_model_providers`: whose prices hold for the models that it sells and has no price of its own for."""

    id: str
    api_pattern: str
    models: list[Model] = []
    fallback_model_providers: list[str] | None = None
