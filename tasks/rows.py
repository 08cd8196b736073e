"""The rows of a file of destinations, whatever its format: CSV, JSONL or plain text.

A row comes as `(line, value)`: the line on which it starts, from 1, and a text, a mapping of columns, or a
`BadRowError` that says why there is none. Nothing is held but the row at hand. JSON arrays are read by
`tasks.json_rows`.
"""

import codecs
import csv
import io
import json
import re
import shlex
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final, Literal

from tasks.columns import COLUMNS, MAX_COLUMNS, BadRowError
from tasks.errors import InputError
from tasks.identity import title_key

#: Characters of one row, at most; bytes of one line.
MAX_ROW: Final = 1024 * 1024
#: Bytes looked at to tell the format.
SNIFF_BYTES: Final = 64 * 1024
#: Lines looked at to tell the delimiter.
SNIFF_LINES: Final = 20

Format = Literal["csv", "jsonl", "json", "text"]
Row = tuple[int, Any]

_BOMS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip
#: Rarest in names first: that one wins where two are equally likely.
_DELIMITERS: Final = "\t|;,"
_QUOTED: Final = re.compile(r'"(?:[^"]|"")*"')
_QUOTED_CELL: Final = re.compile(r'(?:^|[,;\t|])"')
_WRAPPER: Final = re.compile(r'"destinations"\s*:\s*\[')


class Source:
    """The bytes of one input, whose head can be looked at before they are read.

    Line ends of old Macs (a lone carriage return) are turned into line feeds.
    """

    def __init__(self, binary: IO[bytes], name: str) -> None:
        self.name = name
        # What is there to read, without waiting for more: a pipe may be slow, and work starts with its first rows.
        self._some = getattr(binary, "read1", binary.read)
        head = self._first_lines()
        self._only_cr = b"\r" in head and b"\n" not in head
        self._unread = self._line_ends(head)
        #: The beginning, decoded as well as it can be.
        self.head = self._unread.decode("utf-8-sig", "replace")
        self._refuse_other_encodings()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        if self._unread:
            piece, self._unread = self._unread[:size], self._unread[size:]
            return piece
        return self._line_ends(self._read(size))

    def not_text(self, line: int, exc: UnicodeDecodeError) -> InputError:
        """The error of bytes that are no UTF-8."""
        byte = exc.object[exc.start]
        file = "FILE" if self.name == "standard input" else shlex.quote(self.name)
        return InputError(
            f"{self.name}: line {line}: not UTF-8 (byte 0x{byte:02X}), looks like Latin-1 or Windows-1252; "
            f"convert it: iconv -f WINDOWS-1252 -t UTF-8 {file}"
        )

    def binary(self, line: int) -> InputError:
        """The error of a NUL byte."""
        return InputError(f"{self.name}: line {line}: binary data (a NUL byte), not text")

    def _first_lines(self) -> bytes:
        """Enough to tell the format: the first line with text at least."""
        head = b""
        while len(head) < SNIFF_BYTES and b"\n" not in head.lstrip():
            piece = self._read(SNIFF_BYTES - len(head))
            if not piece:
                break
            head += piece
        return head

    def _read(self, size: int) -> bytes:
        try:
            piece = self._some(size) or b""
        except (OSError, ValueError) as exc:
            why = getattr(exc, "strerror", None) or exc
            raise InputError(f"{self.name}: cannot be read ({why})") from exc
        if not isinstance(piece, bytes):
            raise InputError(f"{self.name}: gives {type(piece).__name__}, not bytes; open it in binary mode")
        return piece

    def _line_ends(self, piece: bytes) -> bytes:
        return piece.replace(b"\r", b"\n") if self._only_cr else piece

    def _refuse_other_encodings(self) -> None:
        for bom, encoding in _BOMS:
            if self._unread.startswith(bom):
                raise InputError(f"{self.name}: {encoding} text; save it as UTF-8")


class _Raw(io.RawIOBase):
    """A source as a file, so that the standard library can find its lines."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._source.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


class Lines:
    """The decoded lines of a source, counted. A line above `MAX_ROW` bytes is passed over and raises `BadRowError`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._file = io.BufferedReader(_Raw(source), 256 * 1024)
        #: The line that was read last, from 1.
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = self._file.readline(MAX_ROW + 1)
        if not raw:
            raise StopIteration
        self.number += 1
        if len(raw) > MAX_ROW and not raw.endswith(b"\n"):
            self._pass_over()
            raise BadRowError(f"a line of more than {MAX_ROW} bytes")
        if self.number == 1:
            raw = raw.removeprefix(codecs.BOM_UTF8)
        if b"\x00" in raw:
            raise self._source.binary(self.number)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise self._source.not_text(self.number, exc) from exc

    def _pass_over(self) -> None:
        while (piece := self._file.readline(MAX_ROW)) and not piece.endswith(b"\n"):
            pass


def format_of(name: str, head: str) -> Format:
    """The format of a file, by its name's ending where that is certain, else by its beginning."""
    ending = Path(name).suffix.lower()
    if ending in {".csv", ".tsv"}:
        return "csv"
    if ending in {".jsonl", ".ndjson"}:
        return "jsonl"
    first = _first_line(head)
    if ending != ".txt":
        if first.startswith("["):
            return "json"
        if first.startswith("{"):
            return "json" if _is_wrapper(first, head) else "jsonl"
        if ending == ".json":
            return "json"
    return "csv" if _looks_like_csv(first, head, plain=ending == ".txt") else "text"


def _first_line(head: str) -> str:
    return next((line.strip() for line in head.splitlines() if line.strip()), "")


def _is_wrapper(first: str, head: str) -> bool:
    """Whether this is one object around a list rather than one object a line."""
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        # A brace alone on its line begins no row of JSONL.
        return first == "{" or _WRAPPER.search(head) is not None
    return isinstance(row, dict) and isinstance(row.get("destinations"), list)


def _looks_like_csv(first: str, head: str, *, plain: bool) -> bool:
    delimiter = delimiter_of(head)
    header = next(csv.reader([first[:MAX_ROW]], delimiter=delimiter), [])
    if is_header(header) and (len(header) > 1 or not plain):
        return True
    return not plain and (delimiter != "," or any(_QUOTED_CELL.search(line) for line in _some_lines(head)))


def _some_lines(head: str) -> list[str]:
    lines = [line for line in head.splitlines()[: SNIFF_LINES * 2] if line.strip() and not line.startswith("#")]
    return lines[:SNIFF_LINES]


def delimiter_of(head: str) -> str:
    """The separator: the one that makes a header of the first line, else the one that most lines have."""
    lines = [_QUOTED.sub("", line) for line in _some_lines(head)]
    if not lines:
        return ","
    cells = {delimiter: _first_line(head).split(delimiter) for delimiter in _DELIMITERS}
    headers = [delimiter for delimiter, found in cells.items() if len(found) > 1 and is_header(found)]
    if headers:
        return max(headers, key=lambda delimiter: len(cells[delimiter]))
    best = max(_DELIMITERS, key=lambda delimiter: sum(delimiter in line for line in lines))
    return best if any(best in line for line in lines) else ","


def is_header(cells: list[str]) -> bool:
    """Whether one of these cells is the title of the column of names."""
    return any(COLUMNS.get(title_key(cell)) == "name" for cell in cells)


def text_rows(lines: Lines) -> Iterator[Row]:
    """One destination a line; blank lines and `#` comments are passed over."""
    for line, text in _each(lines):
        if isinstance(text, BadRowError):
            yield line, text
        elif (row := text.strip()) and not row.startswith("#"):
            yield line, row


def jsonl_rows(lines: Lines) -> Iterator[Row]:
    """One JSON value a line."""
    for line, text in _each(lines):
        if isinstance(text, BadRowError):
            yield line, text
        elif text.strip():
            yield line, _parsed(text)


def _each(lines: Lines) -> Iterator[tuple[int, str | BadRowError]]:
    while True:
        try:
            text = next(lines)
        except StopIteration:
            return
        except BadRowError as exc:
            yield lines.number, exc
        else:
            yield lines.number, text


def _parsed(text: str) -> Any:
    try:
        return DECODER.decode(text)
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


def csv_rows(lines: Lines, source: Source, *, named: Collection[str] = ()) -> Iterator[Row]:
    """One mapping of columns a record, with or without a header.

    Raises:
        InputError: the header lacks a column that its user has `named`, or has too many.
    """
    delimiter = "\t" if Path(source.name).suffix.lower() == ".tsv" else delimiter_of(source.head)
    columns: list[str] | None = None
    for number, (line, cells) in enumerate(_records(lines, delimiter)):
        if isinstance(cells, BadRowError):
            yield line, cells
        elif number == 0 and len(cells) > MAX_COLUMNS:
            raise InputError(
                f"{source.name}: line {line}: {len(cells)} columns, at most {MAX_COLUMNS} are read; "
                f"is {delimiter!r} the delimiter?"
            )
        elif number == 0 and is_header(cells):
            columns = _titles(cells)
            _check_named(named, columns, source)
        else:
            yield line, _row(columns, cells)


def _records(lines: Lines, delimiter: str) -> Iterator[tuple[int, list[str] | BadRowError]]:
    """The records that are not blank, each with the line on which it starts."""
    csv.field_size_limit(MAX_ROW)
    feed = _Feed(lines)
    reader = csv.reader(feed, delimiter=delimiter)
    while True:
        feed.start_record()
        start = lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as exc:
            yield start, BadRowError(f"not valid CSV: {exc}{_lost(start, lines.number)}")
        except BadRowError as exc:
            yield start, BadRowError(f"{exc}{_lost(start, lines.number)}")
        else:
            if any(cell and not cell.isspace() for cell in cells):
                yield start, cells


def _lost(start: int, end: int) -> str:
    return f" (lines {start} to {end}; is a quote not closed?)" if end > start else ""


class _Feed:
    """Lines for the CSV reader, which would otherwise put one record together without a bound."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._room = MAX_ROW

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._room -= len(line)
        if self._room < 0:
            raise BadRowError(f"a row of more than {MAX_ROW} characters")
        return line

    def start_record(self) -> None:
        self._room = MAX_ROW


def _check_named(named: Collection[str], titles: list[str], source: Source) -> None:
    keys = {title_key(title) for title in titles}
    for name in named:
        if title_key(name) not in keys:
            raise InputError(f"{source.name}: no column {name!r}; the header has: {', '.join(titles)[:500]}")


def _titles(cells: list[str]) -> list[str]:
    """A key for each column of a header: unique, and the title as it was written."""
    titles: dict[str, None] = {}
    for number, cell in enumerate(cells, start=1):
        unique = cell.strip() or f"column_{number}"
        while unique in titles:
            unique = f"{unique}_{number}"
        titles[unique] = None
    return list(titles)


def _row(columns: list[str] | None, cells: list[str]) -> dict[str, str] | BadRowError:
    if len(cells) > MAX_COLUMNS:
        return BadRowError(f"{len(cells)} columns, at most {MAX_COLUMNS} are read")
    if columns is None:
        columns = _headerless(len(cells))
    if len(cells) > len(columns) and any(not_blank(cells[len(columns) :])):
        return BadRowError(
            f"{len(cells)} columns where {len(columns)} are expected; is a name with a comma not quoted?"
        )
    return dict(zip(columns, cells, strict=False))


def not_blank(cells: Iterable[str]) -> Iterator[str]:
    """The cells in which something stands."""
    return (cell for cell in cells if cell and not cell.isspace())


def _headerless(count: int) -> list[str]:
    known = ["name", "country", "region"][:count]
    return known + [f"column_{number}" for number in range(len(known) + 1, count + 1)]
