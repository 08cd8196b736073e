"""What the columns of a row mean, and how a row becomes a destination."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from tasks.identity import OwnId, identify, normalise, own_id, title_key
from tasks.messages import Destination

#: What a column may be called -> what it is.
COLUMNS: Final = {
    "name": "name", "destination": "name", "city": "name", "place": "name", "title": "name", "location": "name",
    "country": "country", "country_name": "country", "nation": "country",
    "region": "region", "state": "region", "province": "region",
    "lat": "lat", "latitude": "lat",
    "lon": "lon", "lng": "lon", "long": "lon", "longitude": "lon",
}  # fmt: skip
#: Columns of one row, and of a file's header.
MAX_COLUMNS: Final = 1_000
#: Characters of a name, country or region.
MAX_NAME: Final = 200
#: Columns with a value beyond those we know, and characters in one of them.
MAX_EXTRA_COLUMNS: Final = 50
MAX_EXTRA: Final = 2_000

#: Control characters, line and paragraph separators.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class BadRowError(Exception):
    """This row cannot be taken; the text says why. It never leaves the reader."""


class Identified(NamedTuple):
    """A destination, the key that rows share that are this destination (`tasks.identity`), and the id its row has."""

    destination: Destination
    key: str
    own: OwnId | None


def identified(row: Any, *, id_column: str | None = None) -> Identified:
    """A row (a text or a mapping of columns) as a destination.

    Args:
        row: a text, a mapping of columns, or a `BadRowError`, which is raised.
        id_column: the column whose value makes rows one destination; every row must have it.

    Raises:
        BadRowError: the row is none.
    """
    if isinstance(row, BadRowError):
        raise row
    known: dict[str, Any]
    extra: dict[str, str] = {}
    if isinstance(row, str):
        known = _of_text(row)
    elif not isinstance(row, Mapping):
        raise BadRowError(f"expected a name or an object with `name`, got {type(row).__name__}")
    elif len(row) > MAX_COLUMNS:
        raise BadRowError(f"{len(row)} columns, at most {MAX_COLUMNS} are read")
    else:
        known, extra = _sorted(row)
    if len(extra) > MAX_EXTRA_COLUMNS:
        raise BadRowError(f"{len(extra)} extra columns, at most {MAX_EXTRA_COLUMNS} are kept")
    own = own_id(extra, id_column=id_column) if extra else None
    if id_column and (own is None or title_key(own.column) != title_key(id_column)):
        raise BadRowError(f"no {id_column} (--id-column)")
    name, country = _text("name", known.get("name")), _optional("country", known.get("country"))
    region = _optional("region", known.get("region"))
    lat, lon = _degrees("lat", known.get("lat"), 90), _degrees("lon", known.get("lon"), 180)
    id_, key = identify(name, country, region, lat, lon, own=own)
    return Identified(Destination(id_, name, country, region, lat, lon, extra), key, own)


def _sorted(row: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The columns that we know by what they are, and the others by their titles.

    Where two could be the same, the one with our own title wins (`id, title, name`), then the first.
    """
    known: dict[str, Any] = {}
    extra: dict[str, str] = {}
    titles: dict[str, str] = {}
    for key, value in row.items():
        title = key if isinstance(key, str) else str(key)
        if value is None or value == "":
            continue
        what = _what(title)
        if what is None:
            extra[title] = _extra(title, value)
        elif what not in known:
            known[what], titles[what] = value, title
        elif title_key(title) == what != title_key(titles[what]):
            extra[titles[what]] = _extra(titles[what], known[what])
            known[what], titles[what] = value, title
        else:
            extra[title] = _extra(title, value)
    return known, extra


def _what(title: str) -> str | None:
    """What a column is by its title. Most titles are written as we write them, and need no folding."""
    return COLUMNS.get(title) or COLUMNS.get(title_key(title))


def _of_text(text: str) -> dict[str, Any]:
    """`Kyoto, Japan`: the last part is the country, everything before it the name; one part is a name alone."""
    name, comma, country = text.rpartition(",")
    return {"name": name, "country": country} if comma else {"name": text}


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
    if _CONTROL.search(text):
        raise BadRowError(f"{what}: has control characters{_open_quote(text)}")
    if _LONE_SURROGATE.search(text):
        raise BadRowError(f"{what}: has broken Unicode (a lone surrogate)")
    if not normalise(text):
        raise BadRowError(f"no {what}: only invisible characters")
    return text


def _open_quote(text: str) -> str:
    breaks = text.count("\n")
    return f" ({breaks} line breaks; is a quote not closed?)" if breaks else ""


def _optional(what: str, value: Any) -> str | None:
    return None if value is None or (isinstance(value, str) and not value.strip()) else _text(what, value)


def _extra(key: str, value: Any) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise BadRowError(f"column {key[:40]!r}: cannot be kept as text ({type(value).__name__})") from exc
    if len(key) > MAX_NAME:
        raise BadRowError(f"column {key[:40]!r}…: a title of {len(key)} characters, at most {MAX_NAME} are kept")
    if len(text) > MAX_EXTRA:
        raise BadRowError(f"column {key[:40]!r}: {len(text)} characters, at most {MAX_EXTRA} are kept")
    if _LONE_SURROGATE.search(text) or _LONE_SURROGATE.search(key):
        raise BadRowError(f"column {key[:40]!r}: has broken Unicode (a lone surrogate)")
    return text


def _degrees(what: str, value: Any, most: float) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise BadRowError(f"{what}: expected degrees, got {_shown(value)}") from exc
    if not -most <= number <= most:
        raise BadRowError(f"{what}: expected -{most:g} to {most:g} degrees, got {_shown(value)}")
    return number


def _shown(value: Any) -> str:
    """The beginning of a value, for a sentence. A number may have more digits than Python writes out."""
    if isinstance(value, int) and value.bit_length() > 64:  # noqa: PLR2004  # more than any number that is meant
        return "a very large number"
    return repr(str(value)[:40])
