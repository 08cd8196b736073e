"""The options that say at which service tier a job's calls are bought."""

import re
import time
from collections.abc import Callable
from typing import Any, Final

import click

from config.endpoints import BATCH, TIERS
from scripts.main import settings_from

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def _moment(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    """When a duration from now has passed, in seconds since 1970."""
    if text is None:
        return None
    found = _DURATION.fullmatch(text)
    if not found:
        raise click.BadParameter(f"{text!r}: write a number and s, m, h or d, for instance 90m or 12h")
    return time.time() + float(found[1]) * _SECONDS[found[2]]


def _tier(_: click.Context, __: click.Parameter, text: str | None) -> str:
    key = "performance_optimization.enable_persistent_cache"
    if text == BATCH and not (settings := settings_from()).performance_optimization.enable_persistent_cache:
        raise click.BadParameter(f"batch needs {key}, which is off ({settings.origin(key)})")
    return text or ""


def tier_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--tier` and `--deadline`; the command gets `tier`, empty where it is not given, and `deadline_at`."""
    deadline = click.option(
        "--deadline", "deadline_at", metavar="DURATION", callback=_moment,
        help="From then on nothing waits for a batch, and flex calls are standard ones: 90m, 12h.",
    )  # fmt: skip
    tier = click.option(
        "--tier", type=click.Choice(TIERS), callback=_tier,
        help="Service tier: flex costs half and waits for capacity; batch costs half and takes hours.",
    )  # fmt: skip
    return tier(deadline(command))
