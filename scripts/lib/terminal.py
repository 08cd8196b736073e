"""What verbs print: data on standard output, words on standard error."""

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: Columns of a table where the output is no terminal.
PLAIN_WIDTH: Final = 150


def console(width: int = PLAIN_WIDTH) -> "Console":
    from rich.console import Console  # late: most commands print lines

    return Console(width=None if sys.stdout.isatty() else width, highlight=False)


def table(*titles: str, right: slice | None = None) -> "Table":
    """A table without lines; the columns in `right` have numbers."""
    from rich.table import Table  # late, as above

    made = Table(*titles, box=None)
    for column in made.columns[right] if right else ():
        column.justify = "right"
    return made


def warn(text: object) -> None:
    print(f"themes: {text}", file=sys.stderr)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
