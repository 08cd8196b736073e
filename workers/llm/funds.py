"""Why a budget refuses a call: the limit of its job, or of its team for the day or the month (`lua/funds.lua`)."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from config.settings import Settings
from tasks.errors import BudgetExceededError
from tasks.jobs.budget import NANO, dollars, nano_usd
from tasks.lua import lua

#: What scripts that spend budgets begin with.
FUNDS: Final = lua(__file__, "funds")
#: Decisions on an amount; the others are refusals: by the job's limit, by its team's, or as the team is not known or
#: what Redis holds of it cannot be read.
GRANTED: Final = 1
#: Begins the error of a script that changes nothing, as what Redis holds of a job's team cannot be read.
UNREADABLE: Final = "UNREADABLE "
BY_JOB, BY_DAY, BY_MONTH, NO_TEAM, UNREADABLE_TEAM = -1, -2, -3, -4, -5
#: Decisions as those of a day or a month, where batches alone hold too much: what is left of them comes back some time.
BATCHES_OF_DAY, BATCHES_OF_MONTH = -12, -13
#: Seconds after which a job that is paused by batches of its team is tried again.
TRY_AGAIN_SECONDS: Final = 300.0


class Standing(NamedTuple):
    """Limits and what is spent for certain, in nano-dollars, at a moment in ms since 1970. A limit of -1 is none."""

    now_ms: int
    limit: int
    spent: int
    day_limit: int = -1
    day_spent: int = 0
    month_limit: int = -1
    month_spent: int = 0

    @classmethod
    def of(cls, reply: Sequence[bytes | str | int]) -> "Standing":
        return cls(*map(int, reply[: len(cls._fields)]))


def limits_json(settings: Settings) -> bytes:
    """Each team's limits of the day and of the month, as scripts take them."""

    def nano(usd: float | None) -> int | None:
        return None if usd is None else nano_usd(usd)

    budgets = settings.teams.budgets.items()
    return msgspec.json.encode({team: (nano(one.usd_per_day), nano(one.usd_per_month)) for team, one in budgets})


def period_end(now_ms: int, *, is_month: bool) -> datetime:
    """When the UTC day or month of a moment ends."""
    day = datetime.fromtimestamp(now_ms / 1000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    # The first of a month and 32 days is in the next one.
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1) if is_month else day + timedelta(days=1)


class Refused(NamedTuple):
    """A decision below 0 on an amount in nano-dollars, and how the budget stood."""

    decision: int
    standing: Standing
    nano: int

    def error(self, job_id: str) -> BudgetExceededError:
        return _refusal(job_id, *self)


def unreadable_team(job_id: str, why: str = "") -> BudgetExceededError:
    """The refusal of a call whose team's books in Redis are none."""
    said = f"what Redis holds of the job's team cannot be read{why and f' ({why})'}, see `themes teams`"
    return BudgetExceededError(said, job_id=job_id, reason="team")


def _refusal(job_id: str, decision: int, standing: Standing, nano: int) -> BudgetExceededError:
    if decision == NO_TEAM:
        said = "the job's team has no budget in the settings of a worker (teams.budgets)"
        return BudgetExceededError(said, job_id=job_id, reason="team")
    if decision == UNREADABLE_TEAM:
        return unreadable_team(job_id)
    if decision in {BATCHES_OF_DAY, BATCHES_OF_MONTH}:
        limit = standing.day_limit if decision == BATCHES_OF_DAY else standing.month_limit
        period = "day" if decision == BATCHES_OF_DAY else "month"
        said = f"batches under way hold what is left of its {dollars(limit / NANO)} a {period}"
        until = standing.now_ms / 1000 + TRY_AGAIN_SECONDS
        return BudgetExceededError(said, job_id=job_id, reason="team", until=until)
    limit, spent = {
        BY_JOB: (standing.limit, standing.spent),
        BY_DAY: (standing.day_limit, standing.day_spent),
        BY_MONTH: (standing.month_limit, standing.month_spent),
    }[decision]
    most, gone, amount = (dollars(each / NANO) for each in (limit, spent, nano))
    if decision == BY_JOB:
        said = f"the budget of {most} is used up: {gone} are spent, and the next call may cost {amount}"
        return BudgetExceededError(said, job_id=job_id, reason="budget", limit_nano=limit)
    end = period_end(standing.now_ms, is_month=decision == BY_MONTH)
    period = "month" if decision == BY_MONTH else "day"
    if nano > limit:
        said = f"its {most} a {period} (teams.budgets) are less than the next call may cost, {amount}"
        return BudgetExceededError(said, job_id=job_id, reason="team")
    said = f"its {most} a {period} are used up: {gone} are spent, and the next call may cost {amount}"
    return BudgetExceededError(said, job_id=job_id, reason="team", until=end.timestamp())
