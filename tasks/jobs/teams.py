"""What teams have spent beside what they may: budgets over all jobs of a team (`teams.budgets`).

Workers reserve and settle (`workers/llm/lua/funds.lua`), by the limits of their own settings.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from redis import Redis

from config.settings import Settings
from config.teams import TeamBudget
from tasks import keys, readings
from tasks.errors import ConfigError, UnreadableError
from tasks.jobs.budget import NANO, RESERVED, check_prices, dollars


class TeamState(msgspec.Struct, frozen=True):
    """A team's budget at one moment, in US dollars. A limit of None is none.

    `reserved_usd`: for calls and batches under way. `unreadable`: why what Redis holds cannot be read.
    """

    team: str
    day: str
    usd_per_day: float | None = None
    day_usd: float = 0.0
    usd_per_month: float | None = None
    month_usd: float = 0.0
    reserved_usd: float = 0.0
    unreadable: str | None = None

    def format(self) -> str:
        if self.unreadable:
            return f"{self.team}: {keys.team(self.team)} cannot be read ({self.unreadable})"
        parts = [
            f"{dollars(spent)}{'' if limit is None else f' of {dollars(limit)}'} {when}"
            for spent, limit, when in (
                (self.day_usd, self.usd_per_day, "today"),
                (self.month_usd, self.usd_per_month, "this month"),
            )
        ]
        if self.reserved_usd:
            parts.append(f"{dollars(self.reserved_usd)} reserved for what is under way or was killed")
        return f"{self.team}: {', '.join(parts)}"


def check_team(team: str, settings: Settings) -> None:
    """Refuse a team whose budget cannot be kept.

    Raises:
        ConfigError: it has no budget here, or a model that may be asked has no price.
    """
    if team not in settings.teams.budgets:
        known = ", ".join(sorted(settings.teams.budgets)) or "none is set"
        raise ConfigError(f"--team: no team {team!r} in teams.budgets ({known})")
    check_prices(settings, "--team")


def read_teams(redis: Redis, budgets: Mapping[str, TeamBudget]) -> list[TeamState]:
    """Each team of the settings, as Redis has it; its day is Redis's, in UTC."""
    if not budgets:
        return []
    seconds: Any = redis.time()
    now = datetime.fromtimestamp(int(seconds[0]), UTC)
    replies = readings.replies_of(redis, map(keys.team, budgets))
    return [_state(team, budgets[team], reply, now) for team, reply in zip(budgets, replies, strict=True)]


def _state(team: str, limits: TeamBudget, reply: Any, now: datetime) -> TeamState:
    day = f"{now:%Y-%m-%d}"
    state = TeamState(team, day, limits.usd_per_day, usd_per_month=limits.usd_per_month)
    try:
        fields = readings.texts(reply)
        spent = {name: readings.whole(fields, name) / NANO for name in (day, day[:7])}
        reserved = sum(readings.whole(fields, name) for name in fields if name.endswith(RESERVED)) / NANO
    except UnreadableError as exc:
        return msgspec.structs.replace(state, unreadable=str(exc))
    return msgspec.structs.replace(state, day_usd=spent[day], month_usd=spent[day[:7]], reserved_usd=reserved)
