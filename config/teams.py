"""What teams may spend: the amounts of `teams.budgets`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import yaml

from config.errors import ConfigError
from config.values import convert, members, node_of, scalar

#: US dollars that a budget may have: a million, well inside what scripts in Redis count exactly, and a nano-dollar.
MAX_USD: Final = 1_000_000.0
MIN_USD: Final = 1e-9
_SHAPE: Final = "`team: {usd_per_day: 5, usd_per_month: 100}`, one of the two or both"
_AMOUNTS: Final = frozenset({"usd_per_day", "usd_per_month"})
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True, slots=True)
class TeamBudget:
    """US dollars that all jobs of a team may cost together in a UTC day, and in a month; None: no limit."""

    usd_per_day: float | None = None
    usd_per_month: float | None = None


TeamBudgets = Mapping[str, TeamBudget]


def parse_team_budgets(key: str, source: yaml.Node | str, place: str) -> TeamBudgets:
    """`team: {usd_per_day: US dollars, usd_per_month: US dollars}`, from a file or as YAML text."""
    budgets: dict[str, TeamBudget] = {}
    for team, node in members(key, node_of(key, source, place), place, _SHAPE).items():
        if not _NAME.fullmatch(team):
            raise ConfigError(f"{key}: a team's name has up to 40 letters, digits and . _ -, got {team!r} ({place})")
        texts = members(key, node, place, _SHAPE)
        if not texts or not set(texts) <= _AMOUNTS:
            raise ConfigError(f"{key}: expected {_SHAPE} ({place})")
        budgets[team] = TeamBudget(**{name: _usd(f"{key}.{team}.{name}", text, place) for name, text in texts.items()})
    return MappingProxyType(budgets)


def _usd(key: str, node: yaml.Node, place: str) -> float:
    number: float = convert(key, float, scalar(key, node, place, "a number"), place)
    if not MIN_USD <= number <= MAX_USD:
        raise ConfigError(f"{key}: expected US dollars above 0 and up to {MAX_USD:,.0f}, got {number:g} ({place})")
    return number
