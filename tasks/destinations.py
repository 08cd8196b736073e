"""Read destinations as a stream: CSV, JSONL, a JSON array, plain text, standard input.

    with Reader("cities.csv") as reader:
        for destination in reader:
            ...
    print(reader.report)

Nothing is held but the row at hand and the ids seen so far, which move to a temporary file on disk when there are many:
a million rows need no more memory than a thousand. A bad row is reported with its line and skipped; under `strict` it
ends the reading.
"""

import codecs
import contextlib
import csv
import io
import json
import math
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Self

from tasks.errors import InputError
from tasks.messages import Destination

#: Characters of a name, country or region.
MAX_NAME: Final = 200
#: Columns beyond those we know, and characters in one of them.
MAX_EXTRA_COLUMNS: Final = 50
MAX_EXTRA: Final = 2_000
#: Characters of one row, at most.
MAX_ROW: Final = 1024 * 1024
#: Bytes looked at to tell the format.
SNIFF_BYTES: Final = 64 * 1024
#: Bad rows kept in the report; the others are counted.
KEPT_BAD_ROWS: Final = 100
#: Ids that are kept in memory before they move to disk.
IDS_IN_MEMORY: Final = 50_000

_NAMES: Final = {
    "name": "name", "destination": "name", "city": "name", "place": "name", "title": "name", "location": "name",
    "country": "country", "country_name": "country", "nation": "country",
    "region": "region", "state": "region", "province": "region",
    "lat": "lat", "latitude": "lat",
    "lon": "lon", "lng": "lon", "long": "lon", "longitude": "lon",
}  # fmt: skip
_BOMS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was not taken. `line` is where it starts in the file, from 1."""

    line: int
    reason: str


@dataclass(slots=True)
class ReadReport:
    """What was read so far."""

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
        inserted = self._many.execute("INSERT OR IGNORE INTO seen VALUES (?)", (bytes.fromhex(id_),))
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


class _Bad(Exception):  # noqa: N818  # never leaves this module
    """This row cannot be taken; the text says why."""


class Reader:
    """An iterator over the destinations of one source, with a report. Use as a context manager.

    Args:
        source: a path, `-` for standard input, or a binary file.
        strict: end with an error at the first bad row.
        limit: take only so many destinations.
        on_bad_row: told of every bad row.
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
        self._seen = SeenIds()
        self.name = _name_of(source)

    def __repr__(self) -> str:
        return f"<Reader {self.name} {self.report}>"

    def __enter__(self) -> Self:
        self._binary = self._open()
        self._stack.callback(self._seen.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Destination]:
        """Yield each destination once, in the order of the source.

        Raises:
            InputError: the source cannot be read, or has no destination at all.
        """
        for line, row in self._rows():
            self.report.rows += 1
            try:
                destination = _destination(row)
            except _Bad as exc:
                self._reject(BadRow(line, str(exc)))
                continue
            if not self._seen.add(destination.id):
                self.report.duplicates += 1
                continue
            self.report.accepted += 1
            yield destination
            if self._limit is not None and self.report.accepted >= self._limit:
                return
        if self.report.accepted == 0:
            raise InputError(f"{self.name}: no destinations{self._why_none()}")

    def _why_none(self) -> str:
        if not self.report.bad:
            return ": it is empty"
        first = self.report.bad[0]
        return f": all {self.report.rejected} rows are bad; the first, line {first.line}: {first.reason}"

    def _reject(self, row: BadRow) -> None:
        self.report.rejected += 1
        if self._strict:
            raise InputError(f"{self.name}:{row.line}: {row.reason} (--strict stops here)")
        if len(self.report.bad) < KEPT_BAD_ROWS:
            self.report.bad.append(row)
        if self._on_bad_row:
            self._on_bad_row(row)

    def _open(self) -> IO[bytes]:
        source = self._source
        if source == "-":
            return sys.stdin.buffer
        if not isinstance(source, str | os.PathLike):
            return source
        try:
            return self._stack.enter_context(Path(source).open("rb"))
        except IsADirectoryError as exc:
            raise InputError(f"{self.name}: is a folder; name a file") from exc
        except (OSError, ValueError) as exc:
            why = getattr(exc, "strerror", None) or exc
            raise InputError(f"{self.name}: cannot be read ({why})") from exc

    def _rows(self) -> Iterator[tuple[int, Any]]:
        """Rows with the line on which they start, in whatever format."""
        try:
            head = _head(self._binary)
        except OSError as exc:
            raise InputError(f"{self.name}: cannot be read ({exc.strerror})") from exc
        self._refuse_other_encodings(head)
        lines = _Lines(_Rest(head, self._binary), self.name)
        kind = _kind_of(self.name, head.decode("utf-8-sig", "replace"))
        if kind == "json":
            yield from _JsonArray(lines).rows()
        elif kind == "jsonl":
            yield from _jsonl_rows(lines)
        elif kind == "text":
            yield from _text_rows(lines)
        else:
            yield from _csv_rows(lines, head.decode("utf-8-sig", "replace"), self.name)

    def _refuse_other_encodings(self, head: bytes) -> None:
        for bom, encoding in _BOMS:
            if head.startswith(bom):
                raise InputError(f"{self.name}: {encoding} text; save it as UTF-8")
        if b"\x00" in head:
            raise InputError(f"{self.name}: binary data, not text")


def from_iterable(items: Iterable[Destination | str | Mapping[str, Any]]) -> Iterator[Destination]:
    """Destinations from Python values, each once: `Destination`s, "Kyoto, Japan", or mappings with `name`.

    Raises:
        InputError: an item is none of these; the message has its number, from 1.
    """
    seen = SeenIds()
    try:
        for number, item in enumerate(items, start=1):
            try:
                made = item if isinstance(item, Destination) else _destination(item)
            except _Bad as exc:
                raise InputError(f"destination {number}: {exc}") from exc
            if seen.add(made.id):
                yield made
    finally:
        seen.close()


def _name_of(source: Any) -> str:
    if source == "-":
        return "standard input"
    return str(getattr(source, "name", "input")) if hasattr(source, "read") else os.fspath(source)


def _kind_of(name: str, head: str) -> str:
    """The format, by the file's ending where that is certain, else by its first character."""
    ending = Path(name).suffix.lower()
    known = {".csv": "csv", ".tsv": "csv", ".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    if ending in known:
        return known[ending]
    start = head.lstrip()[:1]
    if start == "[":
        return "json"
    if start == "{":
        # One object a line, or one object around a list.
        first = next((line for line in head.splitlines() if line.strip()), "")
        try:
            return "json" if isinstance(json.loads(first).get("destinations"), list) else "jsonl"
        except ValueError:
            return "json"
    if ending == ".json":
        return "json"
    first = next((line for line in head.splitlines() if line.strip()), "")
    return "csv" if _is_header(next(csv.reader([first], delimiter=_delimiter(first)), [])) else "text"


def _head(file: IO[bytes]) -> bytes:
    """Enough to tell the format: the first line with text at least."""
    head = b""
    while len(head) < SNIFF_BYTES and b"\n" not in head.lstrip():
        piece = _some(file, SNIFF_BYTES - len(head))
        if not piece:
            break
        head += piece
    return head


def _some(file: IO[bytes], most: int) -> bytes:
    """What is there to read, without waiting for more: a pipe may be slow, and work starts with its first rows."""
    read = getattr(file, "read1", file.read)
    return bytes(read(most) or b"")


class _Rest(io.RawIOBase):
    """A binary file whose head has been read already."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._head:
            piece, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        else:
            piece = _some(self._rest, len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


class _Lines:
    """The decoded lines of a file, counted, each of bounded length."""

    def __init__(self, raw: io.RawIOBase, name: str) -> None:
        self._file = io.BufferedReader(raw, 256 * 1024)
        self._name = name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._ended = True
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = self._file.readline(MAX_ROW * 4)
        # A piece of an endless line is no line of its own.
        self.number += self._ended
        self._ended = raw.endswith(b"\n")
        if self.number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as exc:
            byte = exc.object[exc.start]
            raise InputError(
                f"{self._name}:{self.number}: not UTF-8 (byte 0x{byte:02X}); if it is Latin-1 or Windows-1252, convert "
                f"it: iconv -f WINDOWS-1252 -t UTF-8 {self._name}"
            ) from exc
        if not raw:
            raise StopIteration
        return text


def _text_rows(lines: _Lines) -> Iterator[tuple[int, str]]:
    for line in lines:
        text = line.strip()
        if text and not text.startswith("#"):
            yield lines.number, text


def _delimiter(line: str) -> str:
    """The separator that a line has most of."""
    return max(",;\t|", key=line.count)


def _is_header(cells: list[str]) -> bool:
    names = [_key(cell) for cell in cells]
    return any(_NAMES.get(name) == "name" for name in names)


def _key(cell: str) -> str:
    return cell.strip().casefold().replace(" ", "_").replace("-", "_")


def _csv_rows(lines: _Lines, head: str, name: str) -> Iterator[tuple[int, Any]]:
    first = next((line for line in head.splitlines() if line.strip()), "")
    delimiter = "\t" if Path(name).suffix.lower() == ".tsv" else _delimiter(first)
    csv.field_size_limit(MAX_ROW)
    reader = csv.reader((_without_nul(line) for line in lines), delimiter=delimiter)
    columns: list[str] | None = None
    started = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            yield started, _Bad(f"not valid CSV: {exc}")
            started = lines.number + 1
            continue
        line, started = started, lines.number + 1
        if not any(cell.strip() for cell in cells):
            continue
        if columns is None:
            columns = [_key(cell) for cell in cells] if _is_header(cells) else _headerless(len(cells))
            if _is_header(cells):
                continue
        yield line, _cells(columns, cells)


def _headerless(count: int) -> list[str]:
    known = ["name", "country", "region"][:count]
    return known + [f"column_{number}" for number in range(len(known) + 1, count + 1)]


def _cells(columns: list[str], cells: list[str]) -> dict[str, Any] | _Bad:
    if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
        return _Bad(f"{len(cells)} columns where {len(columns)} are expected; is a name with a comma not quoted?")
    return dict(zip(columns, cells, strict=False))


def _without_nul(line: str) -> str:
    return line.replace("\x00", "\ufffd")


def _jsonl_rows(lines: _Lines) -> Iterator[tuple[int, Any]]:
    for line in lines:
        if line.strip():
            yield lines.number, _parsed(line)


def _parsed(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as exc:
        return _Bad(f"not valid JSON: {exc}")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a key stands twice")
    return row


def _constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)


class _JsonArray:
    """The elements of an array, one at a time: `[…]`, or the list in `{"destinations": […]}`."""

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines
        self._text = ""
        self._at = 0
        self._line = 1

    def rows(self) -> Iterator[tuple[int, Any]]:
        """Each element with the line on which it starts."""
        if not self._reach("["):
            yield 1, _Bad("not valid JSON: a list is expected")
            return
        self._advance(self._at + 1)
        while self._skip_between():
            if self._text[self._at] == "]":
                return
            line = self._line
            try:
                value = self._element()
            except (ValueError, RecursionError) as exc:
                # Where the next element starts is anybody's guess.
                yield line, _Bad(f"not valid JSON from here on: {exc}")
                return
            yield line, value
        yield self._line, _Bad("the list is not closed; the file may be cut off")

    def _element(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except ValueError:
                if len(self._text) - self._at > MAX_ROW or not self._more():
                    raise
                continue
            # A number may go on in what has not been read.
            if end == len(self._text) and self._more():
                continue
            self._advance(end)
            return value

    def _reach(self, char: str) -> bool:
        while (found := self._text.find(char, self._at)) < 0:
            if len(self._text) > MAX_ROW or not self._more():
                return False
        self._advance(found)
        return True

    def _skip_between(self) -> bool:
        """Move to the next element or the end of the list; False at the end of the file."""
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in " \t\r\n,":
                end += 1
            self._advance(end)
            if self._at < len(self._text):
                return True
            if not self._more():
                return False

    def _advance(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> bool:
        """Read one more line, dropping what is behind us."""
        line = next(self._lines, None)
        if line is None:
            return False
        self._text = self._text[self._at :] + line
        self._at = 0
        return True


def _destination(row: Any) -> Destination:
    """One row as a destination."""
    if isinstance(row, _Bad):
        raise row
    if isinstance(row, str):
        return _from_text(row)
    if not isinstance(row, Mapping):
        raise _Bad(f"expected a name or an object with `name`, got {type(row).__name__}")
    known: dict[str, Any] = {}
    extra: dict[str, str] = {}
    for key, value in row.items():
        name = _NAMES.get(_key(str(key)))
        if name is None or name in known:
            if value is not None and value != "":
                extra[str(key)] = _extra(str(key), value)
        elif value is not None and value != "":
            known[name] = value
    if len(extra) > MAX_EXTRA_COLUMNS:
        raise _Bad(f"{len(extra)} extra columns, at most {MAX_EXTRA_COLUMNS} are kept")
    return Destination.of(
        _text("name", known.get("name")),
        _optional("country", known.get("country")),
        region=_optional("region", known.get("region")),
        lat=_degrees("lat", known.get("lat"), 90),
        lon=_degrees("lon", known.get("lon"), 180),
        extra=extra,
    )


def _from_text(text: str) -> Destination:
    """`Kyoto, Japan`: the last part is the country, everything before it the name; one part is a name alone."""
    name, comma, country = text.rpartition(",")
    if not comma or not name.strip() or not country.strip():
        return Destination.of(_text("name", text))
    return Destination.of(_text("name", name), _optional("country", country))


def _text(what: str, value: Any) -> str:
    if value is None:
        raise _Bad(f"no {what}")
    if not isinstance(value, str):
        raise _Bad(f"{what}: expected text, got {type(value).__name__}")
    text = value.strip()
    if not text:
        raise _Bad(f"no {what}")
    if len(text) > MAX_NAME:
        raise _Bad(f"{what}: {len(text)} characters, at most {MAX_NAME} are allowed")
    if any(ord(char) < 32 or 0xD800 <= ord(char) <= 0xDFFF or ord(char) == 127 for char in text):  # noqa: PLR2004
        raise _Bad(f"{what}: has control characters or broken Unicode")
    return text


def _optional(what: str, value: Any) -> str | None:
    return None if value is None or (isinstance(value, str) and not value.strip()) else _text(what, value)


def _extra(key: str, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(key) > MAX_NAME or len(text) > MAX_EXTRA:
        raise _Bad(f"column {key[:40]!r}: {len(text)} characters, at most {MAX_EXTRA} are kept")
    try:
        f"{key}{text}".encode()
    except UnicodeEncodeError as exc:
        raise _Bad(f"column {key[:40]!r}: has broken Unicode") from exc
    return text


def _degrees(what: str, value: Any, most: float) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError) as exc:
        raise _Bad(f"{what}: expected degrees, got {str(value)[:40]!r}") from exc
    if not -most <= number <= most:
        raise _Bad(f"{what}: expected -{most:g} to {most:g} degrees, got {str(value)[:40]!r}")
    return number
