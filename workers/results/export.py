"""A job's profiles as a file: JSON, JSON lines, CSV, Parquet. Written as they are read, however many there are."""

import csv
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import IO, Any, Final, Protocol

import msgspec

from tasks.errors import ConfigError
from tasks.messages import Profile, Theme
from workers.results.selection import Selection

#: Columns of CSV and Parquet, one row a theme, and what each holds there.
COLUMNS: Final = (
    ("destination", "text"), ("country", "text"), ("status", "text"), ("rank", "whole"), ("category", "text"),
    ("theme", "text"), ("description", "text"), ("confidence", "share"), ("price_point", "text"),
    ("traveler_types", "list"), ("peak_months", "list"), ("avoid_months", "list"), ("sub_themes", "list"),
    ("nano_themes", "list"), ("rationale", "text"), ("unique_selling_points", "list"), ("authenticity_score", "share"),
    ("citations", "list"), ("model", "text"), ("destination_id", "text"),
)  # fmt: skip
#: Themes in one row group of a Parquet file: what is held in memory.
ROW_GROUP: Final = 20_000
#: What a spreadsheet may take for a formula (OWASP, CSV injection), also behind blanks and in full width.
_FORMULA: Final = re.compile(r"[\s\x00]*[=+\-@\t\r\uFF1D\uFF0B\uFF0D\uFF20]")

Payloads = AsyncIterator[str]
_profile: Final = msgspec.json.Decoder(Profile)


class Write(Protocol):
    """Writes profiles, given as they are stored."""

    async def __call__(self, payloads: Payloads, out: IO[Any], selection: Selection, /) -> None:
        """Write all of them."""


def _chosen(payload: str, selection: Selection) -> str:
    """A payload as it is stored, or without the themes that are not wanted."""
    if not selection.chooses_themes:
        return payload
    return msgspec.json.encode(selection.of(_profile.decode(payload))).decode()


async def jsonl(payloads: Payloads, out: IO[str], selection: Selection, /) -> None:
    """One profile a line."""
    async for payload in payloads:
        out.write(_chosen(payload, selection) + "\n")


async def array(payloads: Payloads, out: IO[str], selection: Selection, /) -> None:
    """One JSON array."""
    separator = "[\n"
    async for payload in payloads:
        out.write(separator + _chosen(payload, selection))
        separator = ",\n"
    out.write("\n]\n" if separator != "[\n" else "[]\n")


async def comma_separated(payloads: Payloads, out: IO[str], selection: Selection, /) -> None:
    """One theme a row, safe for spreadsheets; lists are joined by semicolons."""
    writer = csv.writer(out)
    writer.writerow([name for name, _ in COLUMNS])
    async for payload in payloads:
        writer.writerows([_cell(value) for value in row] for row in _rows(selection.of(_profile.decode(payload))))


async def parquet(payloads: Payloads, out: IO[bytes], selection: Selection, /) -> None:
    """One theme a row, with types; needs pyarrow.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        # Late: an extra that few need.
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as bad:
        raise ConfigError("--format parquet: needs pyarrow; install the extra: pip install 'themes[parquet]'") from bad
    kinds = {"text": pa.string(), "whole": pa.int32(), "share": pa.float64(), "list": pa.list_(pa.string())}
    schema = pa.schema([(name, kinds[kind]) for name, kind in COLUMNS])
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:

        def flush(rows: list[tuple[Any, ...]]) -> None:
            columns = [
                pa.array(values, field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))

        rows: list[tuple[Any, ...]] = []
        async for payload in payloads:
            rows += _rows(selection.of(_profile.decode(payload)))
            if len(rows) >= ROW_GROUP:
                flush(rows)
                rows = []
        if rows:
            flush(rows)


def _rows(profile: Profile) -> Iterator[tuple[Any, ...]]:
    """Values in the order of `COLUMNS`. The rank is the theme's place in the whole profile."""
    p = profile
    for t in p.themes:
        season = t.seasonality
        yield (
            p.name, p.country, p.status, _rank(t), t.category, t.name, t.description, t.confidence, t.price_point,
            t.traveler_types, season and season.peak, season and season.avoid, t.sub_themes, t.nano_themes, t.rationale,
            t.unique_selling_points, t.authenticity_score, t.citations, p.model, p.destination_id,
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


#: By the name of the format.
WRITERS: Final[dict[str, Callable[[Payloads, IO[Any], Selection], Any]]] = {
    "jsonl": jsonl,
    "json": array,
    "csv": comma_separated,
    "parquet": parquet,
}
