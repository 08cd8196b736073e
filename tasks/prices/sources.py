"""Where price lists are read from: the installed package genai-prices, and a file that the user names."""

import functools
import importlib.util
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from config.errors import ConfigError
from config.values import Prices, parse_prices
from tasks.prices.catalogue import Catalogue
from tasks.prices.shapes import Match, Provider

log = logging.getLogger("themes.prices")

PACKAGE: Final = "genai-prices"
#: Bytes that a file of prices may have: the whole list has less than three million.
MAX_FILE_BYTES: Final = 32 * 1024 * 1024
_SHAPES: Final = "the data.json of genai-prices, or `model: {input_usd: 0.15, output_usd: 0.60}` for each model"
_decoder: Final = msgspec.json.Decoder(list[Provider])


@functools.cache
def packaged() -> Catalogue | None:
    """The list of the package; None, said once, where it cannot be read. Nothing is asked over the network.

    Its data file is read alone: importing the package takes ten times the CPU time and nine times the memory.
    """
    from importlib.metadata import version  # late: most verbs need no price, and it takes as long as reading the list

    try:
        package = importlib.util.find_spec("genai_prices")
        path = Path(((package and package.submodule_search_locations) or [""])[0], "data.py")
        spec: Any = importlib.util.spec_from_file_location("tasks.prices.data", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return Catalogue(module.providers, f"{PACKAGE} {version(PACKAGE)}")
    except Exception as exc:  # noqa: BLE001  # whatever another version of it does, calls go on without a price
        log.warning("action=prices_unread %s cannot be read (%r): set llm.prices, or install it again", PACKAGE, exc)
        return None


@functools.lru_cache(maxsize=4)
def _read(path: Path, changed_ns: int) -> Catalogue | Prices:
    day = time.strftime("%Y-%m-%d", time.gmtime(changed_ns / 1e9))
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"llm.prices_file: {path} has more than {MAX_FILE_BYTES:,} bytes: expected {_SHAPES}")
    if not raw.lstrip().startswith(b"["):
        return parse_prices("llm.prices_file", raw.decode(), str(path))
    catalogue = Catalogue(_decoder.decode(raw), f"llm.prices_file {path} of {day}")
    for pattern in _patterns(catalogue):
        re.compile(pattern)
    return catalogue


def read_file(path: Path) -> Catalogue | Prices:
    """The prices of a file, which is read anew when it has changed. Raises ConfigError: it cannot be used."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except OSError as exc:
        raise ConfigError(f"llm.prices_file: {path} cannot be read: {exc.strerror or exc}") from exc
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, re.error) as exc:
        raise ConfigError(f"llm.prices_file: {path}: {exc}: expected {_SHAPES}") from exc


def _patterns(catalogue: Catalogue) -> Iterator[str]:
    for provider in catalogue.providers.values():
        yield provider.api_pattern
        for model in provider.models:
            yield from _within(model.match)


def _within(clause: Match) -> Iterator[str]:
    if clause.regex is not None:
        yield clause.regex
    for part in (*(clause.or_ or ()), *(clause.and_ or ())):
        yield from _within(part)
