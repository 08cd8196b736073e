"""The rows of a file of destinations that is no table: JSONL and plain text; and which format a file has.

A row comes as `(line, value)`: the line on which it starts, from 1, and a text, a mapping of columns, or a
`BadRowError` that says why there is none. Nothing is held but the row at hand. Tables are read by
`tasks.inputs.tables`, JSON documents by `tasks.inputs.json_rows`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, Final, Literal

from tasks.errors import InputError
from tasks.inputs.columns import BadRowError
from tasks.inputs.source import Lines
from tasks.inputs.tables import looks_like_a_table
from tasks.inputs.titles import role_of

Format = Literal["csv", "jsonl", "json", "text"]
Row = tuple[int, Any]

#: Where a list of rows stands in JSON: ours, GeoJSON's, that of SPARQL results, and others that are common.
LISTS: Final = frozenset({
    "destinations", "features", "bindings", "results", "data", "items", "places", "cities", "locations", "records",
    "rows",
})  # fmt: skip
_WRAPPER: Final = re.compile(rf'"(?:{"|".join(sorted(LISTS))})"\s*:\s*\[')
#: What stands before the items of a list in plain text.
_BULLET: Final = re.compile(r"(?:[-*+\u2022\u2023\u25e6\u2013]|\(?\d{1,6}[.)])\s+(?:\[[ xX]\]\s+)?")


def format_of(name: str, head: str) -> Format:
    """The format of a file, by its name's ending where that is certain, else by its beginning."""
    ending = ending_of(name)
    if ending in {".yaml", ".yml"}:
        raise InputError(f"{name}: YAML: convert it to JSON")
    if ending in {".csv", ".tsv"}:
        return "csv"
    if ending in {".jsonl", ".ndjson", ".geojsonl"}:
        return "jsonl"
    first = next((line.strip() for line in head.splitlines() if line.strip()), "")
    if ending != ".txt":
        if first.startswith("["):
            return "json"
        if first.startswith("{"):
            return "json" if _is_wrapper(first, head) else "jsonl"
        if ending in {".json", ".geojson"}:
            return "json"
    return "csv" if looks_like_a_table(head, is_plain=ending == ".txt") else "text"


def ending_of(name: str) -> str:
    """The ending of a file's name, without that of its packing."""
    path = PurePath(name.lower())
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _is_wrapper(first: str, head: str) -> bool:
    """Whether this is one object around a list rather than one object a line."""
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        # A brace alone on its line begins no row of JSONL.
        return first == "{" or _WRAPPER.search(head) is not None
    if not isinstance(row, dict) or any(
        (role_of(key) or ("", 0))[0] == "name" and not isinstance(value, list) for key, value in row.items()
    ):
        return False
    results = row.get("results")
    inner = results if isinstance(results, dict) else row
    return any(isinstance(inner.get(key), list) for key in LISTS)


def text_rows(lines: Lines) -> Iterator[Row]:
    """One destination a line; blank lines, `#` comments and bullets are passed over."""
    is_first = True
    for text in lines:
        if isinstance(text, BadRowError):
            yield lines.number, text
        elif (row := text.strip()) and not row.startswith("#"):
            # `Destinations` above a list is its title.
            if not is_first or (role_of(row.rstrip(":")) or ("", 0))[0] != "name":
                yield lines.number, _BULLET.sub("", row, count=1) if _BULLET.match(row) else row
            is_first = False


def jsonl_rows(lines: Lines) -> Iterator[Row]:
    for text in lines:
        if isinstance(text, BadRowError):
            yield lines.number, text
        elif text.strip():
            yield lines.number, _parsed(text)


def _parsed(text: str) -> Any:
    try:
        return plain_row(DECODER.decode(text))
    except (ValueError, RecursionError) as exc:
        return BadRowError(f"not valid JSON: {exc}")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a key stands twice")
    return row


def _constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


#: JSON as its standard has it: no NaN, no key twice.
DECODER: Final = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)


def plain_row(row: Any) -> Any:
    """A row of JSON as a mapping of columns: what GeoJSON and SPARQL results put around the values goes."""
    if not isinstance(row, dict):
        return row
    if row.get("type") == "Feature" and isinstance(row.get("properties"), dict):
        return _feature(row)
    if row and all(isinstance(value, dict) and "value" in value and "type" in value for value in row.values()):
        return {name: value["value"] for name, value in row.items()}
    return row


def _feature(row: dict[str, Any]) -> dict[str, Any]:
    """A feature of GeoJSON (RFC 7946): its properties, its id, and where it lies if it is a point."""
    properties: dict[str, Any] = row["properties"]
    plain = {"id": row["id"]} | properties if "id" in row else dict(properties)
    geometry = row.get("geometry")
    if isinstance(geometry, dict) and geometry.get("type") == "Point":
        place = geometry.get("coordinates")
        if isinstance(place, list) and len(place) in {2, 3}:
            plain |= {"lon": place[0], "lat": place[1]}
    return plain
