"""`themes prices`: what a model costs at each endpoint, and where its prices are from."""

from typing import Final

import click
import msgspec

from scripts.lib.terminal import NO_PRICE
from scripts.main import settings_from
from tasks.errors import ConfigError
from tasks.jobs.budget import models_asked
from tasks.prices.rates import Offer, Rate, Rates
from tasks.prices.shapes import Constraint
from tasks.prices.table import PriceTable
from tasks.redis_url import masked

#: Kinds of tokens, what people call them, and the kind whose price they have where they have none of their own.
KINDS: Final = (
    ("prompt", "prompt", ""), ("cached", "cached", "prompt"), ("written", "written into the cache", "prompt"),
    ("written_1h", "written for an hour", "written"), ("completion", "completion", ""),
    ("reasoning", "reasoning", "completion"),
)  # fmt: skip


@click.command(epilog="Example: themes prices gpt-4o-mini")
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option("--endpoint", metavar="NAME", help="Only at this endpoint of llm.endpoints.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each model and endpoint.")
def command(models: tuple[str, ...], endpoint: str | None, *, as_json: bool) -> int:
    """Show what MODEL costs at each endpoint, and where its prices are from; exit 1 when one is not known.

    Without MODEL: the models of llm.model and llm.roles. llm.prices wins over llm.prices_file, and this over the list
    of the installed package genai-prices.
    """
    settings = settings_from()
    if endpoint and endpoint not in settings.llm.endpoints:
        known = ", ".join(settings.llm.endpoints) or "none is set"
        raise ConfigError(f"--endpoint: no endpoint {endpoint!r} in llm.endpoints ({known})")
    if not models and not (models := models_asked(settings)):
        raise click.UsageError("name a MODEL: llm.model is not set (THEMES_MODEL)")
    found = [
        (model, name, base_url, offer)
        for model in dict.fromkeys(models)
        for name, base_url, offer in PriceTable(settings.llm).offers(model)
        if endpoint in {None, name}
    ]
    if not found:
        raise ConfigError(f"{', '.join(models)}: no endpoint of llm.endpoints serves it")
    for each in found:
        print(_as_json(*each) if as_json else _words(*each))
    return 0 if all(offer for *_, offer in found) else 1


def _words(model: str, endpoint: str, base_url: str, offer: Offer | None) -> str:
    place = f"{model} at {endpoint} ({masked(base_url)})"
    if offer is None:
        return f"{place}: {NO_PRICE.format(model)}"
    known_as = f": {offer.provider}, {offer.model}" if offer.provider else ""
    now = offer.at()
    lines = [f"{place}", f"  {_rates(now)} per million tokens", f"  from {offer.source}{known_as}"]
    return "\n".join([*lines, *(f"  {_when(when)}: {_rates(rates)}" for when, rates in offer.dated if rates != now)])


def _rates(rates: Rates) -> str:
    shown = (
        f"{what} {_rate(getattr(rates, kind))}"
        for kind, what, same in KINDS
        if not same or getattr(rates, kind) != getattr(rates, same)
    )
    return ", ".join([*shown, *([f"a call ${rates.call:g}"] if rates.call else [])])


def _rate(rate: Rate) -> str:
    (_, first), *steps = rate
    return f"${first:g}" + "".join(f" (${usd:g} for prompts beyond {start:,} tokens)" for start, usd in steps)


def _when(when: Constraint | None) -> str:
    if when is None:
        return "otherwise"
    if when.start_date:
        return f"from {when.start_date} on"
    return f"from {when.start_time} to {when.end_time} each day"


def _as_json(model: str, endpoint: str, base_url: str, offer: Offer | None) -> str:
    found = {"model": model, "endpoint": endpoint, "base_url": masked(base_url), "offer": offer}
    return msgspec.json.encode(found | {"now": offer and offer.at()}).decode()
