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
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Self

from tasks.columns import BadRowError, identified
from tasks.duplicates import Duplicate, LikelyDuplicate, LikelyDuplicates, SeenRows
from tasks.errors import InputError
from tasks.identity import OWN_ID_COLUMNS, title_key
from tasks.json_rows import json_rows
from tasks.messages import Destination
from tasks.rows import Lines, Row, Source, csv_rows, format_of, jsonl_rows, text_rows

#: Bad rows, duplicates and likely duplicates kept in the report, each; the others are counted.
KEPT_ROWS: Final = 1_000
#: Titles kept of columns that are not sent.
KEPT_TITLES: Final = 50


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was not taken. `line` is where it starts in the file, from 1."""

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
    bad: list[BadRow] = field(default_factory=list)
    duplicate_rows: list[Duplicate] = field(default_factory=list)
    likely_duplicate_rows: list[LikelyDuplicate] = field(default_factory=list)
    #: Columns whose values are kept with the results and not sent to the model; ids are not among them.
    unsent_columns: list[str] = field(default_factory=list)
    #: Columns that were to be sent, and that no row has.
    absent_columns: list[str] = field(default_factory=list)


class Reader:
    """An iterator over the destinations of one source, with a report. Use as a context manager.

    Args:
        source: a path, `-` for standard input, or a binary file.
        strict: end with an error at the first bad row.
        limit: take only so many destinations, 1 at least.
        id_column: the column whose values say which rows are one destination.
        columns: further columns that are sent to the model.
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
        id_column: str | None = None,
        columns: Sequence[str] = (),
        on_bad_row: Callable[[BadRow], None] | None = None,
    ) -> None:
        self.report = ReadReport()
        self._source = source
        self._strict = strict
        self._limit = limit
        self._id_column = id_column
        self._columns = {title_key(column): column for column in columns}
        self._titles: set[str] = set()
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
        with contextlib.closing(SeenRows()) as seen, LikelyDuplicates() as likely:
            yield from self._destinations(self._rows(Source(self._binary, self.name)), seen, likely)
            for one in likely.found():
                self.report.likely_duplicates += 1
                _keep(self.report.likely_duplicate_rows, one)
            self.report.likely_duplicate_rows.sort(key=lambda one: (one.line, one.first_line))
        if self.report.accepted == 0:
            raise InputError(f"{self.name}: no destinations{self._why_none()}")
        known = {title_key(title) for title in self._titles}
        self.report.absent_columns = [column for key, column in self._columns.items() if key not in known]

    def _destinations(self, rows: Iterator[Row], seen: SeenRows, likely: LikelyDuplicates) -> Iterator[Destination]:
        for line, row in rows:
            self.report.rows += 1
            try:
                one = identified(row, id_column=self._id_column)
            except BadRowError as exc:
                self._reject(BadRow(line, str(exc)))
                continue
            if duplicate := seen.duplicate(one, line):
                self.report.duplicates += 1
                _keep(self.report.duplicate_rows, duplicate)
                continue
            self.report.accepted += 1
            if not one.destination.extra.keys() <= self._titles:
                self._note_titles(one.destination.extra)
            likely.add(one, line)
            yield one.destination
            if self._limit is not None and self.report.accepted >= self._limit:
                return

    def _note_titles(self, titles: Iterable[str]) -> None:
        """Note columns that were not seen before: a title costs its lookup once."""
        for title in titles:
            if title in self._titles or len(self._titles) >= KEPT_TITLES:
                continue
            self._titles.add(title)
            key = title_key(title)
            if key not in self._columns and key not in OWN_ID_COLUMNS and key != title_key(self._id_column or ""):
                self.report.unsent_columns.append(title)

    def _rows(self, source: Source) -> Iterator[Row]:
        kind = format_of(self.name, source.head)
        if kind == "json":
            return json_rows(source)
        if kind == "jsonl":
            return jsonl_rows(Lines(source))
        if kind == "text":
            return text_rows(Lines(source))
        return csv_rows(Lines(source), source, named=[*self._columns.values(), *filter(None, [self._id_column])])

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
        _keep(self.report.bad, row)
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
    with contextlib.closing(SeenRows()) as seen:
        for number, item in enumerate(items, start=1):
            if isinstance(item, Destination):
                if seen.is_new(item.id):
                    yield item
                continue
            try:
                made = identified(item)
            except BadRowError as exc:
                raise InputError(f"destination {number}: {exc}") from exc
            if not seen.duplicate(made, number) and seen.is_new(made.destination.id):
                yield made.destination


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
