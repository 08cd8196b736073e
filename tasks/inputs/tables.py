"""The rows of a table: CSV and its like, with any delimiter.

Which column holds the names is known by its title, or said with `--map`; it is never guessed by its place. A table of
one column needs no title.
"""

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from tasks.errors import InputError
from tasks.identity import title_key
from tasks.inputs.columns import MAX_COLUMNS, BadRowError
from tasks.inputs.source import MAX_ROW, Lines, Source
from tasks.inputs.titles import GEONAMES, Columns, role_of
from tasks.texts import clean_line

#: Lines looked at to tell the delimiter.
SNIFF_LINES: Final = 20

#: Characters of one file that are read again, at most, where a quote was not closed.
REREAD: Final = 64 * MAX_ROW
_OPEN_QUOTE: Final = "a quote is not closed"

#: Lone cells above a table that are taken for its heading.
MAX_HEADINGS: Final = 5

Cells = list[str]
Record = tuple[int, Cells | BadRowError]
#: Rarest in names first: that one wins where two are equally likely.
_DELIMITERS: Final = "\t|;,"
_QUOTED: Final = re.compile(r'"(?:[^"]|"")*"')
_QUOTED_CELL: Final = re.compile(r'(?:^|[,;\t|])"')
#: The first line by which Excel tells itself the delimiter.
_SEP: Final = re.compile(r'"?sep=([^"\s\w]|\t)"?$', re.IGNORECASE)
_ANY_DELIMITER: Final = re.compile(r"[\t;,|]")
_NUMBERED: Final = re.compile(r"\d+[,;|\t]")


@dataclass(slots=True)
class Layout:
    """How a table is laid out; the rest is known when its first record has been read."""

    delimiter: str
    is_geonames: bool = False
    #: Line of the titles; None: there are none.
    header_line: int | None = None


def layout_of(source: Source, ending: str) -> Layout:
    if _is_geonames(source.head):
        return Layout("\t", is_geonames=True)
    return Layout("\t" if ending == ".tsv" else delimiter_of(source.head))


def looks_like_a_table(head: str, *, is_plain: bool) -> bool:
    """Whether a text has columns. In a plain text, where `Kyoto, Japan` is a line, a title must show it."""
    if _is_geonames(head) or _sep_of(head):
        return True
    lines = _some_lines(head)
    if not lines:
        return False
    delimiter = delimiter_of(head)
    header = next(csv.reader([lines[0][:MAX_ROW]], delimiter=delimiter), [])
    roles = [role[0] for role in map(role_of, header) if role]
    if roles and (len(header) > 1 or ("name" in roles and not is_plain)):
        return True
    if len(lines) > 1 and all(_NUMBERED.match(line) for line in lines[1:]) and len(header) > 1:
        return True
    if is_plain:
        return delimiter != "," and all(delimiter in line for line in lines)
    return delimiter != "," or any(_QUOTED_CELL.search(line) for line in lines)


def csv_rows(
    lines: Lines, source: Source, layout: Layout, columns: Columns, named: Iterable[str] = ()
) -> Iterator[Any]:
    """One mapping of columns a record.

    Raises:
        InputError: no column is known to hold the names, or a column that its user has `named` is not there.
    """
    return table_rows(_records(lines, layout), source.name, layout, columns, named)


def table_rows(
    records: Iterable[Record],
    name: str,
    layout: Layout,
    columns: Columns,
    named: Iterable[str] = (),
) -> Iterator[tuple[int, Any]]:
    """The records of a table as rows; the first one may hold the titles. Raises InputError: as `csv_rows`."""
    titles: list[str] | None = None
    if layout.is_geonames:
        titles = list(GEONAMES)
        _check_named([*columns.mapped.values(), *named], titles, name)
    for line, cells in _below_headings(iter(records), columns):
        if isinstance(cells, BadRowError):
            yield line, cells
            continue
        if titles is None:
            titles = _titles(cells, f"{name}: line {line}", layout, columns)
            if titles is None:
                layout.header_line = line
                titles = _unique(cells)
            _check_named([*columns.mapped.values(), *named], titles, name)
            if layout.header_line == line:
                continue
        yield line, _row(titles, cells)


def _below_headings(records: Iterator[Record], columns: Columns) -> Iterator[Record]:
    """The records; a few lone cells above a table of several columns are no rows of it."""
    held: list[tuple[int, Cells]] = []
    for line, cells in records:
        if isinstance(cells, BadRowError):
            yield line, cells
            continue
        is_lone = len(list(not_blank(cells))) == 1
        is_under_title = len(held) == 1 and columns.is_header(held[0][1])
        if is_lone and len(held) < MAX_HEADINGS and not is_under_title:
            held.append((line, cells))
            continue
        for earlier, heading in held:
            yield earlier, heading if is_lone else BadRowError("one cell above a table of several columns")
        held = []
        yield line, cells
        break
    yield from held
    yield from records


def _titles(cells: Cells, where: str, layout: Layout, columns: Columns) -> list[str] | None:
    """The titles of a table whose first record holds none; None where the first record is the titles."""
    if len(cells) > MAX_COLUMNS:
        raise InputError(
            f"{where}: {len(cells)} columns, at most {MAX_COLUMNS} are read; is {layout.delimiter!r} the delimiter?"
        )
    if columns.is_header(cells):
        return None
    numbers = [str(number) for number in range(1, len(cells) + 1)]
    if "name" in columns.mapped and columns.mapped["name"] in numbers:
        return numbers
    if "name" not in columns.mapped and len(list(not_blank(cells))) == 1 and not any(map(role_of, cells)):
        return ["name", *(f"column_{number}" for number in numbers[1:])]
    shown = ", ".join(cell.strip()[:40] for cell in cells[:20])
    if "name" in columns.mapped:
        raise InputError(f"{where}: no column {columns.mapped['name']!r} (--map name=…); columns: {shown}")
    raise InputError(
        f"{where}: which column holds the names? Columns: {shown}. Say --map name=COLUMN, or give the columns titles "
        "(name,country,region); where this line is a destination already, --map name=1 takes the first column"
    )


def _check_named(named: Iterable[str], titles: list[str], name: str) -> None:
    keys = {title_key(title) for title in titles}
    for column in named:
        if title_key(column) not in keys:
            raise InputError(f"{name}: no column {column!r}; the header has: {', '.join(titles)[:500]}")


def _unique(cells: Cells) -> list[str]:
    """A key for each column of a header: unique, and the title as it was written."""
    titles: dict[str, None] = {}
    for number, cell in enumerate(cells, start=1):
        unique = clean_line(cell).strip().removeprefix("#").strip() or f"column_{number}"
        while unique in titles:
            unique = f"{unique}_{number}"
        titles[unique] = None
    return list(titles)


def _row(titles: list[str], cells: Cells) -> dict[str, str] | BadRowError:
    if len(cells) > MAX_COLUMNS:
        return BadRowError(f"{len(cells)} columns, at most {MAX_COLUMNS} are read")
    if len(cells) > len(titles) and any(not_blank(cells[len(titles) :])):
        return BadRowError(f"{len(cells)} columns where {len(titles)} are expected; is a name with a comma not quoted?")
    row = dict(zip(titles, cells, strict=False))
    # The column that a GeoNames dump has and that is left out.
    row.pop("", None)
    return row


def not_blank(cells: Iterable[str]) -> Iterator[str]:
    return (cell for cell in cells if cell and not cell.isspace())


def _records(lines: Lines, layout: Layout) -> Iterator[Record]:
    """The records that are not blank, each with the line on which it starts."""
    # Records are bounded before their cells are.
    csv.field_size_limit(2 * MAX_ROW)
    book = _Book(lines)
    while True:
        for number, line in book.lines:
            found = line if isinstance(line, BadRowError) else _cells(number, line, book, layout)
            if found:
                yield number, found
        if not book.rewind():
            return


def _cells(number: int, line: str, book: "_Book", layout: Layout) -> Cells | BadRowError | None:
    """The cells of the record that starts on this line; None where it is a comment or blank."""
    if not book.width and _SEP.match(line.strip()):
        return None
    if line[0] == "#" and _is_comment(line):
        return None
    cells: Cells | BadRowError
    text = line.rstrip("\r\n")
    # What has no quotes needs no parser. GeoNames quotes nothing, and has names with quotation marks.
    if "\r" not in text and ('"' not in text or layout.is_geonames):
        cells = text.split(layout.delimiter)
    else:
        cells = _Record(number, line, book, layout.delimiter).cells()
        if isinstance(cells, BadRowError):
            return cells
    if not any(map(str.strip, cells)):
        return None
    book.width = book.width or len(cells)
    return cells


class _Book:
    """The numbered lines of a table. Lines that were taken into a record in error are given back to it."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._each = iter(lines)
        self._again: deque[tuple[int, str]] = deque()
        #: Characters that may still be given back: a file of open quotes must not be read again for each of them.
        self._room = REREAD
        #: Cells of the first record; 0 before it.
        self.width = 0
        self.lines = self._numbered()

    def give_back(self, lines: list[tuple[int, str]]) -> bool:
        """Read these lines next; False where too much was given back before."""
        self._room -= sum(len(line) for _, line in lines)
        if self._room < 0:
            return False
        self._again.extendleft(reversed(lines))
        return True

    def rewind(self) -> bool:
        """Go on with what was given back at the end of the file; False where nothing was."""
        self.lines = self._numbered()
        return bool(self._again)

    def _numbered(self) -> Iterator[tuple[int, str | BadRowError]]:
        while self._again:
            yield self._again.popleft()
        for line in self._each:
            yield self._lines.number, line
            while self._again:
                yield self._again.popleft()


class _Record:
    """One record with quotes, over one or several lines, bounded by `MAX_ROW`."""

    def __init__(self, number: int, line: str, book: _Book, delimiter: str) -> None:
        self._book = book
        self._delimiter = delimiter
        self._taken = [(number, line)]
        self._room = MAX_ROW - len(line)

    def cells(self) -> Cells | BadRowError:
        """Its cells. Where its quote is not closed it is bad, and the lines behind it are rows of their own."""
        try:
            cells = next(csv.reader(self._fed(), delimiter=self._delimiter))
        except (csv.Error, BadRowError) as exc:
            reason = f"not valid CSV: {exc}" if isinstance(exc, csv.Error) else str(exc)
            if self._is_torn() and self._book.give_back(self._taken[1:]):
                return BadRowError(_OPEN_QUOTE)
            start, end = self._taken[0][0], self._taken[-1][0]
            if self._room < 0:
                end = self._pass_over(end)
            return BadRowError(f"{reason}{f' (lines {start} to {end}; is a quote not closed?)' if end > start else ''}")
        if len(self._taken) > 1 and self._is_loose() and self._is_torn() and self._book.give_back(self._taken[1:]):
            return BadRowError(_OPEN_QUOTE)
        return cells

    def _fed(self) -> Iterator[str]:
        yield self._taken[0][1]
        for number, line in self._book.lines:
            if isinstance(line, BadRowError):
                raise line
            self._taken.append((number, line))
            self._room -= len(line)
            if self._room < 0:
                raise BadRowError(f"a row of more than {MAX_ROW} characters")
            yield line
        raise BadRowError(_OPEN_QUOTE)

    def _is_loose(self) -> bool:
        """Whether something stands between a closing quote and the delimiter: it may have opened another row's cell."""
        try:
            next(csv.reader((line for _, line in self._taken), delimiter=self._delimiter, strict=True))
        except csv.Error:
            return True
        return False

    def _is_torn(self) -> bool:
        """Whether most lines behind the first have as many cells as the table: they are rows, not a cell of it."""
        others = [line for _, line in self._taken[1 : SNIFF_LINES + 1]]
        return sum(_width(line, self._delimiter) == self._book.width for line in others) * 2 > len(others)

    def _pass_over(self, end: int) -> int:
        """Pass over the rest of a cell that is too long, up to the line that closes it; its number."""
        for number, line in self._book.lines:
            if isinstance(line, BadRowError) or line.count('"') % 2:
                return number
            end = number
        return end


def _width(line: str, delimiter: str) -> int:
    try:
        return len(next(csv.reader([line], delimiter=delimiter), []))
    except csv.Error:
        return 0


def _is_comment(line: str) -> bool:
    """Whether a line is a remark: `# …`, or without a delimiter. `#name,country` is a header, `#1 Beach,Bali` a row."""
    if not line.startswith("#"):
        return False
    cells = _ANY_DELIMITER.split(line[1:])
    if len(cells) > 1 and any(role and role[0] == "name" for role in map(role_of, cells)):
        return False
    return len(cells) == 1 or line[1:2].isspace() or line[1] == "#"


def _some_lines(head: str) -> list[str]:
    """The first lines with records on them; the last one may be cut off."""
    lines = [line for line in head.splitlines()[: SNIFF_LINES * 2] if line.strip() and not _is_comment(line)]
    return lines[1 if lines and _SEP.match(lines[0].strip()) else 0 :][:SNIFF_LINES]


def _sep_of(head: str) -> str | None:
    first = next((line.strip("\r\n ") for line in head.splitlines() if line.strip()), "")
    match = _SEP.match(first)
    return match[1] if match else None


def delimiter_of(head: str) -> str:
    """The separator: the one that Excel names, or that makes titles of the first line, else that most lines have."""
    if sep := _sep_of(head):
        return sep
    whole = _some_lines(head)
    lines = [_QUOTED.sub("", line) for line in whole]
    if not lines:
        return ","
    cells = {delimiter: whole[0].split(delimiter) for delimiter in _DELIMITERS}
    headers = [delimiter for delimiter, found in cells.items() if len(found) > 1 and any(map(role_of, found))]
    if headers:
        return max(headers, key=lambda delimiter: len(cells[delimiter]))
    best = max(_DELIMITERS, key=lambda delimiter: sum(delimiter in line for line in lines))
    return best if any(best in line for line in lines) else ","


def _is_geonames(head: str) -> bool:
    """Whether this is a dump of GeoNames: 19 columns without titles, coordinates in the fifth and sixth."""
    lines = head.splitlines()[:1]
    cells = lines[0].split("\t") if lines else []
    if len(cells) != len(GEONAMES) or not cells[0].isdecimal():
        return False
    try:
        return abs(float(cells[4])) <= 90 and abs(float(cells[5])) <= 180  # noqa: PLR2004  # degrees
    except ValueError:
        return False
