"""What a job may cost: the limit, what is spent, what is reserved for calls under way, as its hash in Redis has it.

Workers reserve and settle (`workers.llm.budget`). Amounts are whole nano-dollars: a million small floats would drift.
Lua counts exactly to 2^53, which is nine million dollars.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from config.settings import Settings
from config.teams import MAX_USD
from tasks.errors import ConfigError
from tasks.messages import JobOptions
from tasks.prices.table import PriceTable
from tasks.readings import whole

NANO: Final = 1_000_000_000
LIMIT: Final = "limit"
TEAM: Final = "team"
SPENT: Final = "spent"
#: Ends the field of what one process has reserved; before it stands the process's token.
RESERVED: Final = ":reserved"


@dataclass(frozen=True, slots=True)
class BudgetState:
    """A budget at one moment, in US dollars. `reserved_usd` is for calls under way, or of processes that died."""

    limit_usd: float
    spent_usd: float
    reserved_usd: float


def nano_usd(usd: float) -> int:
    """Dollars as whole nano-dollars, rounded down; what the user wrote counts, not its binary neighbour."""
    return int(Decimal(str(usd)) * NANO)


def fields_of(options: JobOptions) -> dict[Any, Any]:
    """What a job's budget begins with: its limit, and its team."""
    limit = {} if options.budget_usd is None else {LIMIT: nano_usd(options.budget_usd)}
    return limit | ({TEAM: options.team} if options.team else {})


def state_of(fields: Mapping[str, str]) -> BudgetState | None:
    """The budget in a hash's fields; None where there is none. Raises UnreadableError: an amount is none."""
    if LIMIT not in fields:
        return None
    reserved = sum(whole(fields, name) for name in fields if name.endswith(RESERVED))
    return BudgetState(whole(fields, LIMIT) / NANO, whole(fields, SPENT) / NANO, reserved / NANO)


def models_asked(settings: Settings) -> tuple[str, ...]:
    """Every model that a job's prompts may go to, as far as it is set here.

    A prompt file may name another, and workers may have other settings: one that meets a model without a price pauses
    the job.
    """
    return tuple(filter(None, (settings.llm.model, *settings.llm.roles.values())))


def unpriced(settings: Settings) -> list[str]:
    """Those of the models that may be asked whose price is not known. Raises ConfigError: of `llm.prices_file`."""
    return PriceTable(settings.llm).unpriced(models_asked(settings))


def check(budget_usd: float, settings: Settings) -> None:
    """Refuse a budget that cannot be kept.

    Raises:
        ConfigError: it is no amount, or a model that may be asked has no price.
    """
    if not math.isfinite(budget_usd) or not 0 < budget_usd <= MAX_USD or nano_usd(budget_usd) == 0:
        raise ConfigError(f"--budget: expected US dollars above 0 and up to {MAX_USD:,.0f}, got {budget_usd:g}")
    check_prices(settings, "--budget")


def check_prices(settings: Settings, option: str) -> None:
    """Refuse models without a price, without which no budget can be kept. Raises ConfigError, which names `option`."""
    for model in unpriced(settings):
        raise ConfigError(
            f"{option}: the model {model} has no price: add it to llm.prices "
            f"(THEMES_LLM__PRICES='{{{model}: {{input_usd: 0.15, output_usd: 0.60}}}}', dollars per million tokens)"
        )


def dollars(usd: float) -> str:
    """An amount for people: cents, and more digits where it is smaller than a dollar."""
    if usd >= 1 or usd == 0:
        return f"${usd:,.2f}"
    digits = min(9, 2 - math.floor(math.log10(usd)))
    text = f"{usd:.{max(2, digits)}f}"
    whole, _, cents = text.partition(".")
    return f"${whole}.{cents.rstrip('0').ljust(2, '0')}"
