"""Tells of rows that were not taken, on standard error."""

import sys
from typing import Final

from tasks.destinations import BadRow

#: Bad rows that are shown; the rest is counted.
SHOWN_BAD_ROWS: Final = 20


class BadRows:
    """Tells of bad rows, the first ones each, then that there are more."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, row: BadRow) -> None:
        """Take one in."""
        self._count += 1
        if self._count <= SHOWN_BAD_ROWS:
            print(f"themes: line {row.line}: {row.reason}: skipped", file=sys.stderr)
        elif self._count == SHOWN_BAD_ROWS + 1:
            print("themes: more bad rows are counted, not shown", file=sys.stderr)
