"""What the columns of a row mean, and how a row becomes a destination."""

import json
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from config.errors import ThemesError
from tasks.identity import OwnId, identify, normalise, own_id, title_key
from tasks.inputs.placeholders import is_doubtful, is_placeholder
from tasks.inputs.titles import Columns, Plan
from tasks.messages import Destination

#: Columns of one row, and of a file's header.
MAX_COLUMNS: Final = 1_000
#: Characters of a name, country or region.
MAX_NAME: Final = 200
#: Columns with a value beyond those we know, and characters in one of them.
MAX_EXTRA_COLUMNS: Final = 50
MAX_EXTRA: Final = 2_000

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_BROKEN: Final = re.compile("[\ud800-\udfff\ufffd]")
_ADDRESS: Final = re.compile(r"(?:[a-z][a-z0-9+.-]*://|www\.)\S+$", re.IGNORECASE)
_NUL: Final = "has a NUL byte (U+0000)"
#: Well-known text, as Wikidata writes coordinates: longitude first.
_POINT: Final = re.compile(r"POINT ?\(([-+\d.eE]+) ([-+\d.eE]+)\)$", re.IGNORECASE)
_PLAIN_DEGREES: Final = re.compile(r"-?[0-9]{1,3}(?:\.[0-9]{1,20})?")
_DEGREES: Final = re.compile(
    r"([-+]?(?:\d{1,3}(?:[.,]\d*)?|[.,]\d+)(?:e[-+]?\d{1,3})?)\s*°?\s*([NSEW]?)", re.IGNORECASE
)


class BadRowError(ThemesError):
    """This row cannot be taken; the text says why. It never leaves the reader."""


class Identified(NamedTuple):
    """A destination, the key that rows share that are this destination (`tasks.identity`), and the id its row has."""

    destination: Destination
    key: str
    own: OwnId | None
    #: What of the row was left out, and why; empty where nothing was.
    note: str = ""


def identified(row: Any, columns: Columns | None = None) -> Identified:
    """A row as a destination.

    Args:
        row: a text, a mapping of columns by their titles, or a `BadRowError`, which is raised.
        columns: what the columns mean, beside what their titles say.

    Raises:
        BadRowError: the row is none.
    """
    if isinstance(row, BadRowError):
        raise row
    columns = columns or Columns()
    known: dict[str, Any]
    extra: dict[str, str] = {}
    item = None
    if isinstance(row, str):
        known = _of_text(row)
    elif type(row) is not dict and not isinstance(row, Mapping):
        raise BadRowError(f"expected a name or an object with `name`, got {type(row).__name__}")
    elif len(row) > MAX_COLUMNS:
        raise BadRowError(f"{len(row)} columns, at most {MAX_COLUMNS} are read")
    else:
        plan = columns.plan(tuple(row))
        known, extra = _sorted(row, plan)
        item = plan.item
    own = None
    if extra:
        if len(extra) > MAX_EXTRA_COLUMNS:
            raise BadRowError(f"{len(extra)} extra columns, at most {MAX_EXTRA_COLUMNS} are kept")
        own = own_id(extra, id_column=columns.id_column, item=item)
    if columns.id_column and (own is None or title_key(own.column) != title_key(columns.id_column)):
        raise BadRowError(f"no {columns.id_column} (--id-column)")
    name, country = _name(known.get("name"), item, own), _optional("country", known.get("country"))
    region = _optional("region", known.get("region"))
    note, lat, lon = _place(known) if "lat" in known or "lon" in known else ("", None, None)
    if lat is None and not country and not region and not (own and own.is_public) and is_doubtful(name):
        raise BadRowError(
            f"name: {name!r} stands for no name; a place of this name needs its country, region or coordinates"
        )
    id_, key = identify(name, country, region, lat, lon, own=own)
    return Identified(Destination(id_, name, country, region, lat, lon, extra), key, own, note)


def _sorted(row: Mapping[str, Any], plan: Plan) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of the columns with a role, the best that the row has of each, and the others by their titles."""
    known: dict[str, Any] = {}
    used: set[str] = set()
    for title, role in plan.roles:
        value = row[title]
        if value is None or value == "" or role in known:
            continue
        if (
            isinstance(value, str)
            and (value[-1] == ")" or "/" in value or value[0] in "wW")
            and (is_point(value) or (role != "name" and _is_address(value)))
        ):
            # Coordinates in a column called location; the address of a country, which is not its name.
            continue
        known[role] = value
        used.add(title)
    extra: dict[str, str] = {}
    if len(used) == len(row):
        return known, extra
    for title, value in row.items():
        if value is None or value == "" or title in used:
            continue
        if "lat" not in known and is_point(value) and (point := _POINT.match(value)):
            known["lon"], known["lat"] = point.groups()
        else:
            extra[title] = _extra(title, value)
    return known, extra


def _name(value: Any, item: str | None, own: OwnId | None) -> str:
    name = _text("name", value)
    if is_placeholder(name):
        raise BadRowError(f"name: {name!r} stands for no name")
    if _is_address(name):
        raise BadRowError(f"name: an address ({name[:60]}), not a name; which column holds names? --map name=COLUMN")
    if item is not None and own is not None and name == own.value:
        raise BadRowError(f"name: {name} has no label in this language")
    return name


def _place(known: Mapping[str, Any]) -> tuple[str, float | None, float | None]:
    """Why coordinates were left out, where they could not be read; else latitude and longitude."""
    try:
        lat, lon = _degrees("lat", known.get("lat"), 90), _degrees("lon", known.get("lon"), 180)
    except BadRowError as exc:
        return f"{exc}; its coordinates are left out", None, None
    return "", lat, lon


def _of_text(text: str) -> dict[str, Any]:
    """`Kyoto, Japan`: the last part is the country, everything before it the name; one part is a name alone."""
    name, comma, country = text.rpartition(",")
    return {"name": name, "country": country} if comma else {"name": text}


def is_point(value: Any) -> bool:
    # The first look spares most values the expression.
    return isinstance(value, str) and value[-1:] == ")" and _POINT.match(value) is not None


def _is_address(value: Any) -> bool:
    # The first look spares most values the expression.
    return isinstance(value, str) and ("/" in value or value[:1] in "wW") and _ADDRESS.match(value) is not None


def _text(what: str, value: Any) -> str:
    if value is None:
        raise BadRowError(f"no {what}")
    if not isinstance(value, str):
        raise BadRowError(f"{what}: expected text, got {type(value).__name__}")
    text = value.strip()
    if not text:
        raise BadRowError(f"no {what}")
    if len(text) > MAX_NAME:
        raise BadRowError(f"{what}: {len(text)} characters, at most {MAX_NAME} are allowed{_open_quote(text)}")
    if text.isascii() and text.isprintable():
        return text
    if "\0" in text:
        raise BadRowError(f"{what}: {_NUL}")
    if _CONTROL.search(text):
        raise BadRowError(f"{what}: has control characters{_open_quote(text)}")
    if broken := _BROKEN.search(text):
        raise BadRowError(f"{what}: {broken_character(broken.group())}")
    if not normalise(text):
        raise BadRowError(f"no {what}: only invisible characters")
    return text


def broken_character(char: str) -> str:
    """What is wrong with U+FFFD or a lone surrogate, which may stand for a byte that could not be decoded."""
    if char == "\ufffd":
        return "has a character that could not be read (U+FFFD)"
    code = ord(char) - 0xDC00
    return f"not UTF-8 (byte 0x{code:02X})" if code in range(0x80, 0x100) else "has broken Unicode (a lone surrogate)"


def _open_quote(text: str) -> str:
    breaks = text.count("\n")
    return f" ({breaks} line breaks; is a quote not closed?)" if breaks else ""


def _optional(what: str, value: Any) -> str | None:
    """A country or region; None where there is none, or what stands for none."""
    if value is None:
        return None
    return _optional_text(what, value) if isinstance(value, str) else _text(what, value)


@lru_cache(maxsize=1024)
def _optional_text(what: str, value: str) -> str | None:
    """Many rows have the same country."""
    if not value.strip():
        return None
    text = _text(what, value)
    # NA is Namibia, and Naples.
    return None if is_placeholder(text) or (is_doubtful(text) and text.upper() != "NA") else text


def _extra(key: str, value: Any) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise BadRowError(f"column {key[:40]!r}: cannot be kept as text ({type(value).__name__})") from exc
    if len(key) > MAX_NAME:
        raise BadRowError(f"column {key[:40]!r}…: a title of {len(key)} characters, at most {MAX_NAME} are kept")
    if len(text) > MAX_EXTRA:
        raise BadRowError(
            f"column {key[:40]!r}: {len(text)} characters, at most {MAX_EXTRA} are kept{_open_quote(text)}"
        )
    if "\0" in text:
        raise BadRowError(f"column {key[:40]!r}: {_NUL}")
    if not (text.isascii() and key.isascii()) and (
        broken := _LONE_SURROGATE.search(text) or _LONE_SURROGATE.search(key)
    ):
        shown = _LONE_SURROGATE.sub("\ufffd", key[:40])
        raise BadRowError(f"column {shown!r}: {broken_character(broken.group())}")
    return text


def _degrees(what: str, value: Any, most: float) -> float | None:
    """Degrees as a number, also with a decimal comma or a hemisphere: 35.02, 35,02, 35.02° N."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    number = math.nan
    if isinstance(value, str):
        if _PLAIN_DEGREES.fullmatch(value):
            number = float(value)
        elif match := _DEGREES.fullmatch(value.strip()):
            number = float(match[1].replace(",", ".")) * (-1 if match[2] in {"S", "s", "W", "w"} else 1)
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= most:
        number = float(value)
    if not -most <= number <= most:
        raise BadRowError(f"{what}: expected -{most:g} to {most:g} degrees, got {_shown(value)}")
    return number


def _shown(value: Any) -> str:
    """The beginning of a value, for a sentence. A number may have more digits than Python writes out."""
    if isinstance(value, int) and value.bit_length() > 64:  # noqa: PLR2004  # more than any number that is meant
        return "a very large number"
    return repr(str(value)[:40])
