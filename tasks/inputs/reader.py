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
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, Self

from tasks.errors import InputError
from tasks.identity import OWN_ID_COLUMNS, title_key
from tasks.inputs.columns import BadRowError, Identified, identified, is_point
from tasks.inputs.duplicates import Duplicate, SeenRows
from tasks.inputs.json_rows import json_rows
from tasks.inputs.likely_duplicates import LikelyDuplicate, LikelyDuplicates
from tasks.inputs.rows import Row, ending_of, format_of, jsonl_rows, text_rows
from tasks.inputs.source import Lines, Source
from tasks.inputs.tables import Layout, csv_rows, layout_of, table_rows
from tasks.inputs.titles import Columns, mapping
from tasks.inputs.xlsx import workbook_records
from tasks.messages import Destination

#: Bad rows, duplicates and likely duplicates kept in the report, each; the others are counted.
KEPT_ROWS: Final = 1_000
#: Titles kept of columns.
KEPT_TITLES: Final = 200
#: Destinations that are shown before the rest is read.
SHOWN_FIRST: Final = 3
#: Rows whose names are all numbers, after which the column is taken for a wrong one.
NUMBERS_ALLOWED: Final = 20


#: A name that is none: a number, an item of Wikidata.
_NUMBER: Final = re.compile(r"[-+]?\d[\d.,]*|Q[1-9]\d*")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was not taken, or not whole. `line` is where it starts in the file, from 1."""

    line: int
    reason: str


@dataclass(slots=True)
class ReadReport:
    """What was read so far: `rows` is `accepted` + `duplicates` + `rejected`.

    The lists hold the first `KEPT_ROWS` of their kind. Likely duplicates are known when everything has been read.
    """

    rows: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    likely_duplicates: int = 0
    #: Accepted rows, or duplicates, of which something was left out.
    incomplete: int = 0
    bad: list[BadRow] = field(default_factory=list)
    duplicate_rows: list[Duplicate] = field(default_factory=list)
    likely_duplicate_rows: list[LikelyDuplicate] = field(default_factory=list)
    notes: list[BadRow] = field(default_factory=list)
    #: How the input was read, and its first destinations; known when those have been read.
    read_as: str = ""
    first: list[str] = field(default_factory=list)
    #: Columns whose values are kept with the results and not sent to the model; ids are not among them.
    unsent_columns: list[str] = field(default_factory=list)
    #: Columns that were to be sent, and that no row has.
    absent_columns: list[str] = field(default_factory=list)


class Reader:
    """An iterator over the destinations of one source, with a report. Use as a context manager.

    Args:
        source: a path, `-` for standard input, or a binary file.
        strict: end with an error at the first bad row.
        limit: the most destinations to read, at least 1.
        columns: further columns that are sent to the model.
        id_column: the column whose values say which rows are one destination.
        mapped: `ROLE=COLUMN` pairs that say what columns are: name, country, region, lat, lon, id.
        on_bad_row: told of every bad row.
        on_start: told when the report says how the input is read, before the first destinations are taken.

    Raises:
        InputError: on entering, the source cannot be opened.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | IO[bytes],
        *,
        strict: bool = False,
        limit: int | None = None,
        columns: Sequence[str] = (),
        id_column: str | None = None,
        mapped: Sequence[str] = (),
        on_bad_row: Callable[[BadRow], None] | None = None,
        on_start: Callable[[ReadReport], None] | None = None,
    ) -> None:
        self.report = ReadReport()
        self._source = source
        self._strict = strict
        self._limit = limit
        roles, mapped_id = mapping(mapped)
        self._columns = Columns(roles, id_column or mapped_id)
        self._sent = {title_key(column): column for column in columns}
        self._titles: dict[str, None] = {}
        self._roles: dict[str, str] = {}
        self._items: set[str] = set()
        self._read_as: Callable[[], str] = str
        self._on_bad_row = on_bad_row
        self._on_start = on_start
        self._stack = contextlib.ExitStack()
        self._binary: IO[bytes] | None = None
        self.name = _name_of(source)

    def __repr__(self) -> str:
        return f"<Reader {self.name} {self.report}>"

    @property
    def id_column(self) -> str | None:
        return self._columns.id_column

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
        with contextlib.closing(SeenRows()) as seen, LikelyDuplicates() as likely:
            rows = self._not_only_numbers(self._identified(self._rows(Source(self._binary, self.name))))
            yield from self._started(self._destinations(rows, seen, likely))
            for one in likely.found():
                self.report.likely_duplicates += 1
                _keep(self.report.likely_duplicate_rows, one)
            self.report.likely_duplicate_rows.sort(key=lambda one: (one.line, one.first_line))
        if self.report.accepted == 0:
            raise InputError(f"{self.name}: no destinations{self._why_none()}")
        known = {title_key(title) for title in (*self._titles, *self._roles)}
        self.report.absent_columns = [column for key, column in self._sent.items() if key not in known]

    def _started(self, destinations: Iterator[Destination]) -> Iterator[Destination]:
        """The destinations, after the report has been shown with the first of them.

        They are held back only where they come at once: the first rows of a slow pipe are not.
        """
        for destination in islice(destinations, SHOWN_FIRST):
            self.report.first.append(destination.label)
            if len(self.report.first) == SHOWN_FIRST:
                self._start()
            yield destination
        if 0 < len(self.report.first) < SHOWN_FIRST:
            self._start()
        yield from destinations

    def _start(self) -> None:
        self.report.read_as = self._read_as()
        if self._on_start:
            self._on_start(self.report)

    def _identified(self, rows: Iterator[Row]) -> Iterator[tuple[int, Identified]]:
        """The rows that are destinations; the others are rejected."""
        for line, row in rows:
            self.report.rows += 1
            try:
                one = identified(row, self._columns)
            except BadRowError as exc:
                self._reject(BadRow(line, str(exc)))
                continue
            if one.note:
                self._note(BadRow(line, one.note))
            if (type(row) is dict or isinstance(row, Mapping)) and not row.keys() <= self._titles.keys():
                self._note_titles(row)
            yield line, one

    def _not_only_numbers(self, rows: Iterator[tuple[int, Identified]]) -> Iterator[tuple[int, Identified]]:
        """The rows, unless all of their names, or the first `NUMBERS_ALLOWED`, are numbers.

        A name that is a number is a place sometimes (1770 in Queensland); a column of numbers is no column of names.

        Raises:
            InputError: they are, and no column was named by `mapped`.
        """
        held: list[tuple[int, Identified]] = []
        if "name" in self._columns.mapped:
            yield from rows
        for line, one in rows:
            if _NUMBER.fullmatch(one.destination.name):
                held.append((line, one))
                if len(held) < NUMBERS_ALLOWED:
                    continue
                break
            yield from held
            yield line, one
            yield from rows
            return
        if held:
            column = next((title for title, role in self._roles.items() if role == "name"), "")
            numbers = ", ".join(one.destination.name for _, one in held[:SHOWN_FIRST])
            raise InputError(
                f"{self.name}: line {held[0][0]}: the names{f' (column {column!r})' if column else ''} are numbers "
                f"({numbers}); say which column holds them: --map name=COLUMN"
            )

    def _destinations(
        self, rows: Iterator[tuple[int, Identified]], seen: SeenRows, likely: LikelyDuplicates
    ) -> Iterator[Destination]:
        for line, one in rows:
            if duplicate := seen.duplicate(one, line):
                self.report.duplicates += 1
                _keep(self.report.duplicate_rows, duplicate)
                continue
            self.report.accepted += 1
            likely.add(one, line)
            yield one.destination
            if self._limit is not None and self.report.accepted >= self._limit:
                return

    def _note_titles(self, row: Mapping[str, Any]) -> None:
        plan = self._columns.plan(tuple(row))
        if plan.item:
            self._items.add(plan.item)
        for title in row:
            if title in self._titles or len(self._titles) >= KEPT_TITLES:
                continue
            self._titles[title] = None
            if role := dict(plan.roles).get(title):
                self._roles[title] = role
            elif is_point(row[title]):
                self._roles[title] = "lat, lon"
            elif not self._is_sent(title) and not self._is_id(title):
                self.report.unsent_columns.append(title)

    def _is_sent(self, title: str) -> bool:
        return title_key(title) in self._sent

    def _is_id(self, title: str) -> bool:
        key = title_key(title)
        return key in OWN_ID_COLUMNS or key == title_key(self._columns.id_column or "") or title in self._items

    def _rows(self, source: Source) -> Iterator[Row]:
        """The rows by the format of the source; from then on `_read_as` says how they are read."""
        named = [*self._sent.values(), *filter(None, [self._columns.id_column])]
        packing = ", gzip" if source.is_gzip else ""
        if source.is_zip:
            layout = Layout("")
            self._read_as = lambda: f"an Excel workbook{_header(layout)}{self._columns_read()}"
            return table_rows(workbook_records(source), self.name, layout, self._columns, named)
        kind = format_of(self.name, source.head)
        if kind == "csv":
            layout = layout_of(source, ending_of(self.name))
            what = "a GeoNames dump" if layout.is_geonames else f"CSV, delimiter {layout.delimiter!r}"
            self._read_as = lambda: f"{what}, {source.encoding}{packing}{_header(layout)}{self._columns_read()}"
            return csv_rows(Lines(source), source, layout, self._columns, named)
        what = {
            "json": "JSON",
            "jsonl": "JSON lines",
            "text": "text: a destination a line, its country behind a comma",
        }[kind]
        self._read_as = lambda: f"{what}, {source.encoding}{packing}{self._columns_read()}"
        if kind == "json":
            return json_rows(source)
        return jsonl_rows(Lines(source)) if kind == "jsonl" else text_rows(Lines(source))

    def _columns_read(self) -> str:
        """What becomes of each column: sent to the model, or kept with the results."""
        if not self._titles:
            return ""
        sent = [f"{role}={title}" if role != title_key(title) else title for title, role in self._roles.items()]
        sent += [title for title in self._titles if self._is_sent(title) and title not in self._roles]
        ids = [title for title in self._titles if self._is_id(title)]
        parts = {"sent": sent, "kept": self.report.unsent_columns, "id": ids}
        return "".join(f"; {what}: {', '.join(titles)}" for what, titles in parts.items() if titles)

    def _why_none(self) -> str:
        if not self.report.bad:
            return ": it has no rows"
        first = self.report.bad[0]
        rows = "its only row is" if self.report.rejected == 1 else f"all {self.report.rejected} rows are"
        return f": {rows} bad; line {first.line}: {first.reason}"

    def _reject(self, row: BadRow) -> None:
        self.report.rejected += 1
        self._refuse_if_strict(row)
        _keep(self.report.bad, row)
        if self._on_bad_row:
            self._on_bad_row(row)

    def _note(self, row: BadRow) -> None:
        self.report.incomplete += 1
        self._refuse_if_strict(row)
        _keep(self.report.notes, row)

    def _refuse_if_strict(self, row: BadRow) -> None:
        if self._strict:
            raise InputError(f"{self.name}: line {row.line}: {row.reason} (--strict stops here)")

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


def _header(layout: Layout) -> str:
    return ", no header" if layout.header_line is None else f", header on line {layout.header_line}"


def from_iterable(items: Iterable[Destination | str | Mapping[str, Any]]) -> Iterator[Destination]:
    """Destinations from Python values, each once: `Destination`s, "Kyoto, Japan", or mappings with `name`.

    Raises:
        InputError: an item is none of these; the message has its number, from 1.
    """
    if isinstance(items, Reader):
        # It gives each destination once already.
        yield from items
        return
    with contextlib.closing(SeenRows()) as seen:
        for number, item in enumerate(items, start=1):
            if isinstance(item, Destination):
                if seen.is_new(item.id):
                    yield item
                continue
            try:
                made = identified(_with_titles(item))
            except BadRowError as exc:
                raise InputError(f"destination {number}: {exc}") from exc
            if not seen.duplicate(made, number) and seen.is_new(made.destination.id):
                yield made.destination


def _with_titles(item: Any) -> Any:
    return {str(title): value for title, value in item.items()} if isinstance(item, Mapping) else item


def _keep(rows: list[Any], row: Any) -> None:
    if len(rows) < KEPT_ROWS:
        rows.append(row)


def _name_of(source: str | os.PathLike[str] | IO[bytes]) -> str:
    if source == "-":
        return "standard input"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    # A pipe's name is the number of its descriptor.
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "input"
