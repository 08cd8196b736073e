"""What `enqueue`, `run` and `--dry-run` have in common: options of reading a file, and words about what was read."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final, TypeVar

import click

from tasks.identity import RULE
from tasks.inputs.reader import BadRow, ReadReport
from tasks.texts import count

F = TypeVar("F", bound=Callable[..., Any])

#: Rows of each kind that are shown; the rest is counted.
SHOWN_ROWS: Final = 20
MAP_HELP: Final = "Say which column is meant: name, country, region, lat, lon or id, as --map name=destination_name."


def reading_options(command: F) -> F:
    for option in (
        click.option("--limit", type=click.IntRange(min=1), metavar="K", help="Take only the first K destinations."),
        click.option("--map", "mapped", metavar="WHAT=COLUMN", multiple=True, help=MAP_HELP),
        click.option("--id-column", metavar="NAME", help="Rows with one value in this column are one destination."),
        click.option("--column", "columns", metavar="NAME", multiple=True, help="Send this column to the model too."),
        click.option("--strict", is_flag=True, help="Stop at the first bad row instead of skipping it."),
    ):
        command = option(command)
    return command


def show_start(report: ReadReport) -> None:
    _print(f"read as {report.read_as}")
    _print(f"first: {' | '.join(report.first)}")


class BadRows:
    """Prints bad rows on standard error as they are found: the first ones, then that there are more."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, row: BadRow) -> None:
        self._count += 1
        if self._count <= SHOWN_ROWS:
            _print(f"line {row.line}: {row.reason}: skipped")
        elif self._count == SHOWN_ROWS + 1:
            _print("more bad rows are counted, not shown")


def summary(report: ReadReport) -> str:
    parts = [count(report.rows, "row"), count(report.duplicates, "duplicate"), f"{report.rejected:,} rejected"]
    if report.likely_duplicates:
        parts.append(f"{report.likely_duplicates:,} may be the same place as another")
    return ", ".join(parts)


def show(report: ReadReport) -> None:
    lines = [f"line {one.line}: {one.reason}" for one in report.notes[:SHOWN_ROWS]]
    lines += _more(report.incomplete, "incomplete row")
    lines += [
        f"line {one.line}: {one.label}: a duplicate of line {one.first_line} ({one.why})"
        for one in report.duplicate_rows[:SHOWN_ROWS]
    ]
    lines += _more(report.duplicates, "duplicate")
    lines += [
        f"line {one.line}: {one.label}: may be the same place as line {one.first_line}, {one.first_label} ({one.why})"
        for one in report.likely_duplicate_rows[:SHOWN_ROWS]
    ]
    lines += _more(report.likely_duplicates, "likely duplicate")
    if unsent := report.unsent_columns:
        lines.append(f"columns not sent to the model: {', '.join(unsent)} (--column {unsent[0]!r} sends one)")
    lines += [f"no row has the column {column!r} (--column)" for column in report.absent_columns]
    for line in lines:
        _print(line)


def _print(line: str) -> None:
    """Print a line on standard error; what a terminal would obey in titles and names of the input becomes `?`."""
    print(f"themes: {''.join(char if char.isprintable() else '?' for char in line)}", file=sys.stderr)


def _more(number: int, what: str) -> list[str]:
    left = number - SHOWN_ROWS
    return [f"{count(left, f'more {what}')}: --dry-run --json lists them"] if left > 0 else []


def as_json(report: ReadReport) -> dict[str, Any]:
    """The report as an object: numbers, then lists of rows with how many of them are left out."""
    found = asdict(report)
    del found["accepted"]
    found["rejected_rows"], found["incomplete_rows"] = found.pop("bad"), found.pop("notes")
    for kind in ("rejected", "incomplete", "duplicate", "likely_duplicate"):
        total = found[kind] if kind in found else found[f"{kind}s"]
        found[f"{kind}_rows_left_out"] = total - len(found[f"{kind}_rows"])
    return found | {"identity": RULE}
