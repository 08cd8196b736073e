"""`themes config`: what is set, where it came from, and what is wrong with it."""

import codecs
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from config.endpoints import public_endpoint
from config.errors import ConfigError
from config.migrate import migrated
from config.settings import EndpointSettings, Price, Secret, load, notices, problems
from config.values import without_password
from config.yaml_file import read_text
from scripts.main import settings_from

_SECRET_NAME: Final = re.compile(r"(?i)password|secret|token|api_?key|authorization")
#: They say where a key is, and have none.
_NAMES_OF_KEYS: Final = frozenset({"api_key_env", "api_key_file"})


@click.group()
def command() -> None:
    """Show the settings, check them, or rewrite old names in a file."""


@command.command()
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


@command.command()
@click.argument("file", required=False)
def check(file: str | None) -> int:
    """Name everything that is wrong in FILE (by default the file in use) and the environment; exit 2 if anything is."""
    found = problems(file)
    for problem in found:
        print(f"themes: {problem}", file=sys.stderr)
    if not found:
        for notice in notices(load(path=file)):
            print(f"themes: note: {notice}", file=sys.stderr)
        print("ok", file=sys.stderr)
    return 2 if found else 0


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "out", metavar="OUT", type=click.Path(path_type=Path), help="Write to this file.")
@click.option("--in-place", is_flag=True, help="Write to FILE itself.")
def migrate(file: Path, out: Path | None, *, in_place: bool) -> None:
    """Rewrite FILE with today's names of settings, to standard output unless told otherwise.

    Comments, order and formatting stay. What cannot be rewritten is refused with its place, and nothing is written.
    """
    if out is not None and in_place:
        raise click.UsageError("-o and --in-place: choose one")
    text = migrated(file)
    target = file if in_place else out
    if target is None:
        sys.stdout.write(text)
    elif target.exists() and target.samefile(file) and text == read_text(file):
        print(f"{target}: nothing to rewrite", file=sys.stderr)
    else:
        _write(target.resolve(), _with_mark(file, text), like=file)
        print(f"{target}: written", file=sys.stderr)


def _with_mark(file: Path, text: str) -> bytes:
    """The bytes of a text that came from a file, with the byte order mark that it had."""
    with file.open("rb") as source:
        mark = codecs.BOM_UTF8 if source.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 else b""
    return mark + text.encode()


def _write(target: Path, data: bytes, *, like: Path) -> None:
    """The whole file or nothing, with the permissions of another."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            shutil.copymode(like, temporary)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise ConfigError(f"{target}: cannot be written ({exc.strerror}); name another file with -o") from exc


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
    if isinstance(value, Price):
        return asdict(value)
    if isinstance(value, EndpointSettings):
        return public(public_endpoint(value))
    if isinstance(value, str):
        hidden = isinstance(value, Secret) and "://" not in value
        return "***" if hidden else without_password(value)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _print_table(rows: list[tuple[str, Any, str]]) -> None:
    table = Table("setting", "value", "origin", box=None)
    for key, value, origin in rows:
        style = "dim" if origin == "default" else "bold"
        table.add_row(Text(key), Text(_text(value)), Text(origin), style=style)
    Console().print(table)
