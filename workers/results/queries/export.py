"""A job's profiles as a file: JSON, JSON lines, CSV, Parquet. Written as they are read, however many there are."""

import csv
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import IO, Any, Final, Protocol

import msgspec

from tasks.errors import ConfigError
from tasks.identity import title_key
from tasks.messages import Theme
from workers.results.database.rows import ExportRow
from workers.results.queries.selection import Selection

#: Columns of CSV and Parquet, one row a theme, and what each holds there; the input's own columns follow them.
COLUMNS: Final = (
    ("destination", "text"), ("country", "text"), ("region", "text"), ("lat", "number"), ("lon", "number"),
    ("status", "text"), ("quality", "number"), ("rank", "whole"), ("category", "text"), ("theme", "text"),
    ("description", "text"), ("confidence", "number"), ("price_point", "text"), ("traveler_types", "list"),
    ("peak_months", "list"), ("avoid_months", "list"), ("sub_themes", "list"), ("nano_themes", "list"),
    ("rationale", "text"), ("unique_selling_points", "list"), ("authenticity_score", "number"), ("citations", "list"),
    ("model", "text"), ("destination_id", "text"),
)  # fmt: skip
#: Themes in one row group of a Parquet file: what is held in memory.
ROW_GROUP: Final = 20_000
#: What a spreadsheet may take for a formula (OWASP, CSV injection), also behind blanks and in full width.
_FORMULA: Final = re.compile(r"[\s\x00]*[=+\-@\t\r\uFF1D\uFF0B\uFF0D\uFF20]")

Rows = AsyncIterator[ExportRow]


class Write(Protocol):
    """Writes profiles, given as rows."""

    async def __call__(self, rows: Rows, out: IO[Any], selection: Selection, titles: Sequence[str], /) -> None:
        """Write all of them; `titles` are the columns of the input beside those we know."""


def _chosen(row: ExportRow, selection: Selection) -> str:
    """A profile's JSON without the themes that are not wanted, and with where its destination lies."""
    profile = msgspec.json.encode(selection.of(row.row.profile())).decode()
    place = msgspec.json.encode({"region": row.region, "lat": row.lat, "lon": row.lon}).decode()
    # A profile's object is never empty.
    return f"{profile[:-1]},{place[1:]}"


async def jsonl(rows: Rows, out: IO[str], selection: Selection, titles: Sequence[str], /) -> None:
    """One profile a line; the input's columns are in `extra`."""
    del titles
    async for row in rows:
        out.write(_chosen(row, selection) + "\n")


async def array(rows: Rows, out: IO[str], selection: Selection, titles: Sequence[str], /) -> None:
    """One JSON array of what `jsonl` writes."""
    del titles
    separator = "[\n"
    async for row in rows:
        out.write(separator + _chosen(row, selection))
        separator = ",\n"
    out.write("\n]\n" if separator != "[\n" else "[]\n")


async def comma_separated(rows: Rows, out: IO[str], selection: Selection, titles: Sequence[str], /) -> None:
    """One theme a row, safe for spreadsheets; lists are joined by semicolons."""
    writer = csv.writer(out)
    writer.writerow([_cell(name) for name in (*_names(), *_input_names(titles))])
    async for row in rows:
        writer.writerows([_cell(value) for value in theme] for theme in _themes(row, selection, titles))


async def parquet(rows: Rows, out: IO[bytes], selection: Selection, titles: Sequence[str], /) -> None:
    """One theme a row, with types; needs pyarrow. Raises ConfigError: pyarrow is not installed."""
    try:
        # Late: an extra that few need.
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as bad:
        raise ConfigError("--format parquet: needs pyarrow; install the extra: scripts/setup --extra parquet") from bad
    kinds = {"text": pa.string(), "whole": pa.int32(), "number": pa.float64(), "list": pa.list_(pa.string())}
    ours = [(name, kinds[kind]) for name, kind in COLUMNS]
    schema = pa.schema(ours + [(name, pa.string()) for name in _input_names(titles)])
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:

        def flush(group: list[tuple[Any, ...]]) -> None:
            columns = [
                pa.array(values, field.type) for values, field in zip(zip(*group, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))

        group: list[tuple[Any, ...]] = []
        async for row in rows:
            group += _themes(row, selection, titles)
            if len(group) >= ROW_GROUP:
                flush(group)
                group = []
        if group:
            flush(group)


def _names() -> list[str]:
    return [name for name, _ in COLUMNS]


def _input_names(titles: Sequence[str]) -> list[str]:
    """The input's columns as they are called beside ours: one that has a name of ours gets a prefix."""
    taken = set(_names())
    names = []
    for title in titles:
        name = title if title_key(title) not in taken and title not in names else f"input_{title}"
        while name in names or name in taken:
            name += "_"
        names.append(name)
    return names


def _themes(row: ExportRow, selection: Selection, titles: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Values in the order of `COLUMNS`, then the input's. The rank is the theme's place in the whole profile."""
    p = selection.of(row.row.profile())
    extra = [p.extra.get(title) for title in titles]
    for t in p.themes:
        season = t.seasonality
        yield (
            p.name, p.country, row.region, row.lat, row.lon, p.status, p.quality_assessment.overall, _rank(t),
            t.category, t.name, t.description, t.confidence, t.price_point, t.traveler_types, season and season.peak,
            season and season.avoid, t.sub_themes, t.nano_themes, t.rationale, t.unique_selling_points,
            t.authenticity_score, t.citations, p.model, p.destination_id, *extra,
        )  # fmt: skip


def _rank(theme: Theme) -> int | None:
    """Themes are numbered t1, t2, … in their profile."""
    number = theme.id[1:]
    return int(number) if number.isdecimal() and number.isascii() else None


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = "; ".join(value)
    return safe(value) if isinstance(value, str) else value


def safe(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


WRITERS: Final[dict[str, Write]] = {
    "jsonl": jsonl,
    "json": array,
    "csv": comma_separated,
    "parquet": parquet,
}
