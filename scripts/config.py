"""`themes config`: what is set, where it came from, and what is wrong with it."""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final
from urllib.parse import urlsplit

import click
from rich.text import Text

from config.endpoints import EndpointSettings, public_endpoint
from config.settings import load, problems
from config.teams import TeamBudget
from config.values import Price, Secret, SecretAddress, without_password
from scripts.lib.terminal import console, say, table, warn
from scripts.main import FILE, Summaries, settings_from

_SECRET_NAME: Final = re.compile(r"(?i)password|secret|token|api_?key|authorization")
#: They say where a key is, and have none.
_NAMES_OF_KEYS: Final = frozenset({"api_key_env", "api_key_file"})


@click.group(cls=Summaries, epilog="Example: themes config show")
def command() -> None:
    """Show the settings, or check them."""


@command.command(epilog="Example: themes config show --json")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: key -> value, origin.")
def show(*, as_json: bool) -> None:
    """Show every setting, its value and where it came from; passwords and keys are masked."""
    settings = settings_from()
    rows = [(key, public(value), settings.origin(key)) for key, value in settings.items()]
    if as_json:
        print(json.dumps({key: {"value": value, "origin": origin} for key, value, origin in rows}, ensure_ascii=False))
    elif sys.stdout.isatty():
        _print_table(rows)
    else:
        for key, value, origin in rows:
            print(key, _text(value), origin, sep="\t")


@command.command(epilog="Example: themes config check mine.yaml")
@click.argument("file", type=FILE, required=False)
def check(file: str | None) -> int:
    """Name everything that is wrong in FILE (by default the file in use) and the environment; exit 2 if anything is."""
    found = problems(file)
    for problem in found:
        warn(problem)
    if not found:
        for notice in load(path=file).remarks:
            warn(f"note: {notice}")
        say("ok")
    return 2 if found else 0


def public(value: Any) -> Any:
    """A setting's value as JSON knows it, without its password or key."""
    if isinstance(value, Mapping):
        return {
            name: "***"
            if isinstance(one, str) and _SECRET_NAME.search(name) and name not in _NAMES_OF_KEYS
            else public(one)
            for name, one in value.items()
        }
    if isinstance(value, list):
        return [public(one) for one in value]
    if isinstance(value, Price | TeamBudget):
        return {name: usd for name, usd in asdict(value).items() if usd is not None}
    if isinstance(value, EndpointSettings):
        return public(public_endpoint(value))
    if isinstance(value, str):
        return _public_text(value)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _public_text(value: str) -> str:
    if isinstance(value, SecretAddress):
        return f"{value.partition('://')[0]}://{urlsplit(value).hostname}/***"
    is_hidden = isinstance(value, Secret) and "://" not in value
    return "***" if is_hidden else without_password(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _print_table(rows: list[tuple[str, Any, str]]) -> None:
    shown = table("setting", "value", "origin")
    for key, value, origin in rows:
        style = "dim" if origin == "default" else "bold"
        shown.add_row(Text(key), Text(_text(value)), Text(origin), style=style)
    console().print(shown)
