"""Read destinations as a stream: CSV, JSONL, a JSON array, plain text, standard input.

    with Reader("cities.csv") as reader:
        for destination in reader:
            ...
    print(reader.report)

Nothing is held but the row at hand and the ids seen so far, which move to a temporary file on disk when there are many:
a million rows need no more memory than a thousand. A bad row is reported with its line and skipped; under `strict` it
ends the reading.
"""

import contextlib
import json
import math
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Self

from tasks.errors import InputError
from tasks.json_rows import json_rows
from tasks.messages import Destination, normalise
from tasks.rows import COLUMNS, BadRowError, Lines, Row, Source, column_key, csv_rows, format_of, jsonl_rows, text_rows

#: Characters of a name, country or region.
MAX_NAME: Final = 200
#: Columns beyond those we know, and characters in one of them.
MAX_EXTRA_COLUMNS: Final = 50
MAX_EXTRA: Final = 2_000
#: Bad rows kept in the report; the others are counted.
KEPT_BAD_ROWS: Final = 100
#: Ids that are kept in memory before they move to disk.
IDS_IN_MEMORY: Final = 50_000

#: Control characters, line and paragraph separators.
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was not taken. `line` is where it starts in the file, from 1."""

    line: int
    reason: str


@dataclass(slots=True)
class ReadReport:
    """What was read so far: `rows` is `accepted` + `duplicates` + `rejected`; `bad` has the first of the rejected."""

    rows: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    bad: list[BadRow] = field(default_factory=list)


class SeenIds:
    """Remembers ids exactly, in memory while they are few, then in SQLite's private temporary file."""

    def __init__(self) -> None:
        self._few: set[str] = set()
        self._many: sqlite3.Connection | None = None

    def add(self, id_: str) -> bool:
        """Remember an id; False when it was known."""
        if self._many is None:
            if id_ in self._few:
                return False
            self._few.add(id_)
            if len(self._few) >= IDS_IN_MEMORY:
                self._move_to_disk()
            return True
        try:
            inserted = self._many.execute("INSERT OR IGNORE INTO seen VALUES (?)", (bytes.fromhex(id_),))
        except sqlite3.OperationalError as exc:
            raise InputError(f"the ids of so many destinations find no room in the temporary folder ({exc})") from exc
        return inserted.rowcount > 0

    def close(self) -> None:
        """Let the file go."""
        if self._many is not None:
            self._many.close()
            self._many = None

    def _move_to_disk(self) -> None:
        # An empty name: a database of this connection's own, which SQLite deletes with it.
        self._many = sqlite3.connect("", isolation_level=None)
        self._many.execute("PRAGMA cache_size = -8192")
        self._many.execute("PRAGMA synchronous = OFF")
        self._many.execute("PRAGMA journal_mode = OFF")
        self._many.execute("CREATE TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._many.execute("BEGIN")
        self._many.executemany("INSERT INTO seen VALUES (?)", ((bytes.fromhex(id_),) for id_ in sorted(self._few)))
        self._few = set()


class Reader:
    """An iterator over the destinations of one source, with a report. Use as a context manager.

    Args:
        source: a path, `-` for standard input, or a binary file.
        strict: end with an error at the first bad row.
        limit: take only so many destinations, 1 at least.
        on_bad_row: told of every bad row.

    Raises:
        InputError: on entering, the source cannot be opened.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | IO[bytes],
        *,
        strict: bool = False,
        limit: int | None = None,
        on_bad_row: Callable[[BadRow], None] | None = None,
    ) -> None:
        self.report = ReadReport()
        self._source = source
        self._strict = strict
        self._limit = limit
        self._on_bad_row = on_bad_row
        self._stack = contextlib.ExitStack()
        self._binary: IO[bytes] | None = None
        self.name = _name_of(source)

    def __repr__(self) -> str:
        return f"<Reader {self.name} {self.report}>"

    def __enter__(self) -> Self:
        self._binary = self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._binary = None

    def __iter__(self) -> Iterator[Destination]:
        """Yield each destination once, in the order of the source.

        Raises:
            InputError: the source cannot be read, or has no destination at all.
        """
        if self._binary is None:
            raise RuntimeError("use the reader as a context manager: with Reader(...) as reader")
        with contextlib.closing(SeenIds()) as seen:
            yield from self._destinations(self._rows(Source(self._binary, self.name)), seen)
        if self.report.accepted == 0:
            raise InputError(f"{self.name}: no destinations{self._why_none()}")

    def _destinations(self, rows: Iterator[Row], seen: SeenIds) -> Iterator[Destination]:
        for line, row in rows:
            self.report.rows += 1
            try:
                destination = _destination(row)
            except BadRowError as exc:
                self._reject(BadRow(line, str(exc)))
                continue
            if not seen.add(destination.id):
                self.report.duplicates += 1
                continue
            self.report.accepted += 1
            yield destination
            if self._limit is not None and self.report.accepted >= self._limit:
                return

    def _rows(self, source: Source) -> Iterator[Row]:
        kind = format_of(self.name, source.head)
        if kind == "json":
            return json_rows(source)
        if kind == "jsonl":
            return jsonl_rows(Lines(source))
        if kind == "text":
            return text_rows(Lines(source))
        return csv_rows(Lines(source), source)

    def _why_none(self) -> str:
        if not self.report.bad:
            return ": it is empty"
        first = self.report.bad[0]
        rows = "its only row is" if self.report.rejected == 1 else f"all {self.report.rejected} rows are"
        return f": {rows} bad; line {first.line}: {first.reason}"

    def _reject(self, row: BadRow) -> None:
        self.report.rejected += 1
        if self._strict:
            raise InputError(f"{self.name}: line {row.line}: {row.reason} (--strict stops here)")
        if len(self.report.bad) < KEPT_BAD_ROWS:
            self.report.bad.append(row)
        if self._on_bad_row:
            self._on_bad_row(row)

    def _open(self) -> IO[bytes]:
        source = self._source
        if not isinstance(source, str | os.PathLike):
            return source
        if source == "-":
            return sys.stdin.buffer
        try:
            return self._stack.enter_context(Path(source).open("rb"))
        except IsADirectoryError as exc:
            raise InputError(f"{self.name}: is a folder; name a file") from exc
        except (OSError, ValueError) as exc:
            why = getattr(exc, "strerror", None) or exc
            raise InputError(f"{self.name}: cannot be read ({why})") from exc


def from_iterable(items: Iterable[Destination | str | Mapping[str, Any]]) -> Iterator[Destination]:
    """Destinations from Python values, each once: `Destination`s, "Kyoto, Japan", or mappings with `name`.

    Raises:
        InputError: an item is none of these; the message has its number, from 1.
    """
    if isinstance(items, Reader):
        # It gives each destination once already.
        yield from items
        return
    with contextlib.closing(SeenIds()) as seen:
        for number, item in enumerate(items, start=1):
            try:
                made = item if isinstance(item, Destination) else _destination(item)
            except BadRowError as exc:
                raise InputError(f"destination {number}: {exc}") from exc
            if seen.add(made.id):
                yield made


def _name_of(source: str | os.PathLike[str] | IO[bytes]) -> str:
    if source == "-":
        return "standard input"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    # A pipe's name is the number of its descriptor.
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "input"


def _destination(row: Any) -> Destination:
    """One row as a destination."""
    if isinstance(row, BadRowError):
        raise row
    if isinstance(row, str):
        return _from_text(row)
    if not isinstance(row, Mapping):
        raise BadRowError(f"expected a name or an object with `name`, got {type(row).__name__}")
    known, extra = _sorted(row)
    if len(extra) > MAX_EXTRA_COLUMNS:
        raise BadRowError(f"{len(extra)} extra columns, at most {MAX_EXTRA_COLUMNS} are kept")
    return Destination.of(
        _text("name", known.get("name")),
        _optional("country", known.get("country")),
        region=_optional("region", known.get("region")),
        lat=_degrees("lat", known.get("lat"), 90),
        lon=_degrees("lon", known.get("lon"), 180),
        extra=extra,
    )


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
        elif column_key(title) == what != column_key(titles[what]):
            extra[titles[what]] = _extra(titles[what], known[what])
            known[what], titles[what] = value, title
        else:
            extra[title] = _extra(title, value)
    return known, extra


def _what(title: str) -> str | None:
    """What a column is by its title. Most titles are written as we write them, and need no folding."""
    return COLUMNS.get(title) or COLUMNS.get(column_key(title))


def _from_text(text: str) -> Destination:
    """`Kyoto, Japan`: the last part is the country, everything before it the name; one part is a name alone."""
    name, comma, country = text.rpartition(",")
    if not comma:
        return Destination.of(_text("name", text))
    return Destination.of(_text("name", name), _optional("country", country))


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
