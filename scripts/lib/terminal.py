"""What verbs print: data on standard output, words on standard error. Where no terminal reads, nothing is cut."""

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Columns where the output is no terminal: more than a line of ours has, so that it is neither cut nor wrapped.
UNBOUNDED: Final = 100_000
#: Between two columns.
GAP: Final = "  "
NO_PRICE: Final = "no price for {}: costs are not counted; set llm.prices"


def width() -> int | None:
    """The columns of the terminal that standard output is; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def height() -> int | None:
    """The lines of that terminal; None where it is none."""
    return shutil.get_terminal_size().lines if sys.stdout.isatty() else None


def console() -> "Console":
    from rich.console import Console  # late: most commands print lines

    return Console(width=None if sys.stdout.isatty() else UNBOUNDED, highlight=False)


def table(*titles: str, right: slice | None = None) -> "Table":
    """A table without lines; the columns in `right` have numbers."""
    from rich.table import Table  # late, as above

    made = Table(*titles, box=None, pad_edge=False)
    for column in made.columns[right] if right else ():
        column.justify = "right"
    return made


def columns(
    rows: Iterable[Sequence[str]],
    *,
    titles: Sequence[str] = (),
    right: Iterable[int] = (),
    limits: Mapping[int, int] | None = None,
    width: int | None = None,
) -> list[str]:
    """Rows as lines of aligned columns, without those that are empty; `right` have numbers.

    With a `width` lines end there, and cells of the columns in `limits` at their limit, with an ellipsis.
    """
    from rich.cells import cell_len  # late: `--help` and `enqueue` align nothing

    limits = limits or {} if width else {}
    cells = [[cut(cell, limits.get(number)) for number, cell in enumerate(row)] for row in rows]
    kept = [number for number, column in enumerate(zip(*cells, strict=True)) if any(column)]
    head = [list(titles)] if titles and cells else []
    widest = {number: max(cell_len(row[number]) for row in (*head, *cells)) for number in kept}
    to_right = set(right)

    def line(row: Sequence[str]) -> str:
        padded = []
        for number in kept:
            space = " " * (widest[number] - cell_len(row[number]))
            padded.append(space + row[number] if number in to_right else row[number] + space)
        return cut(GAP.join(padded).rstrip(), width)

    return [line(row) for row in (*head, *cells)]


def cut(text: str, width: int | None) -> str:
    """A text that is no wider than `width`, if one is given."""
    from rich.cells import cell_len, set_cell_size  # late, as above

    return text if width is None or cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def warn(text: object) -> None:
    print(f"themes: {text}", file=sys.stderr)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def say_unpriced(models: Sequence[str]) -> None:
    if models:
        say(NO_PRICE.format(", ".join(models)))
