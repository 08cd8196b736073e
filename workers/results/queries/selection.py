"""Which profiles and themes of a job a user wants: conditions for the database, and the same for a decoded profile.

Conditions on the destination choose profiles. Conditions on themes choose themes, and the profiles that have one; a
theme must meet all of them, one value of each.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from sqlalchemy import Column, ColumnElement, String, cast, exists, func, or_, select

from tasks.errors import ConfigError
from tasks.messages import Profile, Theme
from tasks.texts import known_name, nearest
from workers.results.database import tables
from workers.results.database.values import MONTHS, month_bits

#: What `--where` knows by itself; whatever else the input had can be named too.
COLUMNS: Final[Mapping[str, Column[str | None]]] = {
    "name": tables.destinations.c.name,
    "country": tables.destinations.c.country,
    "region": tables.destinations.c.region,
    "destination_id": tables.destinations.c.destination_id,
    "status": tables.profiles.c.status,
    "model": tables.profiles.c.model,
}


@dataclass(frozen=True, slots=True)
class Selection:
    """What is wanted; nothing said means everything. Confidence and quality are 0-1, months 1-12."""

    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    min_quality: float | None = None
    categories: tuple[str, ...] = ()
    min_confidence: float | None = None
    months: tuple[int, ...] = ()
    travelers: tuple[str, ...] = ()
    prices: tuple[str, ...] = ()

    @property
    def chooses_themes(self) -> bool:
        """Whether profiles lose themes by it."""
        return bool(self.categories or self.months or self.travelers or self.prices or self.min_confidence is not None)

    def conditions(self, dialect: str) -> list[ColumnElement[bool]]:
        """For a query over destinations joined with their profiles."""
        found: list[ColumnElement[bool]] = [
            or_(*(column_of(name, dialect) == value for value in values)) for name, values in self.where.items()
        ]
        if self.min_quality is not None:
            found.append(tables.profiles.c.quality >= self.min_quality)
        if self.chooses_themes:
            found.append(exists(select(1).where(*self._theme_conditions())))
        return found

    def _theme_conditions(self) -> list[ColumnElement[bool]]:
        t, k = tables.profile_themes, tables.theme_travelers
        found = [t.c.profile_no == tables.profiles.c.profile_no]
        if self.categories:
            found.append(t.c.category.in_(self.categories))
        if self.min_confidence is not None:
            found.append(t.c.confidence >= self.min_confidence)
        if self.prices:
            found.append(t.c.price_point.in_(self.prices))
        if self.months:
            found.append(t.c.seasons.op("&")(month_bits(self.months, "peak")) != 0)
        if self.travelers:
            found.append(exists(select(1).where(k.c.theme_no == t.c.theme_no, k.c.traveler_type.in_(self.travelers))))
        return found

    def of(self, profile: Profile) -> Profile:
        """The profile with the themes that are wanted, in their order."""
        if not self.chooses_themes:
            return profile
        return msgspec.structs.replace(profile, themes=[theme for theme in profile.themes if self._wants(theme)])

    def _wants(self, theme: Theme) -> bool:
        peak = {MONTHS.get(name) for name in theme.seasonality.peak} if theme.seasonality else set()
        return (
            (not self.categories or theme.category in self.categories)
            and (self.min_confidence is None or (theme.confidence or -1.0) >= self.min_confidence)
            and (not self.prices or theme.price_point in self.prices)
            and (not self.months or not peak.isdisjoint(self.months))
            and (not self.travelers or not set(theme.traveler_types or ()).isdisjoint(self.travelers))
        )


def column_of(name: str, dialect: str) -> ColumnElement[Any]:
    """A column that `--where` names: ours, else the input's."""
    if name in COLUMNS:
        return COLUMNS[name]
    extra = tables.destinations.c.extra
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import JSONB  # late, as in `statements`

        text: ColumnElement[Any] = cast(extra, JSONB)[name].astext
        return text
    # Not by a path: in one, a name with a quotation mark cannot be written.
    each = func.json_each(extra).table_valued("key", "value")
    return select(cast(each.c.value, String)).where(each.c.key == name).scalar_subquery()


def where(pairs: Iterable[str], extra_columns: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """`KEY=VALUE` pairs as conditions: another key narrows, the same key again widens. Case does not matter in a key.

    Raises:
        ConfigError: no `=`, or a key that neither we nor the job's input know, with the nearest that they do.
    """
    known = [*COLUMNS, *extra_columns]
    found: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise ConfigError(f"--where {pair}: expected KEY=VALUE, for instance --where country=France")
        name = known_name(key, known)
        if name is None:
            raise ConfigError(f"--where {pair}: no column {key!r}{nearest(key, known, 'columns')}")
        found[name] = (*found.get(name, ()), value)
    return found


def month(text: str) -> int:
    """A month by its English name, the beginning of it, or its number. Raises ConfigError: it is none."""
    if text.isdecimal() and text.isascii() and 1 <= int(text[:3]) <= 12:  # noqa: PLR2004  # months
        return int(text[:3])
    found = [number for name, number in MONTHS.items() if len(text) > 2 and name.lower().startswith(text.lower())]  # noqa: PLR2004  # jan
    if not found:
        raise ConfigError(f"--month {text}: expected a month, as july, jul or 7")
    return found[0]
