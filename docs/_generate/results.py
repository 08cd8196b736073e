"""Run the queries in docs/reference/results.md on a database, and write what they answer below each.

themes demo, then: python docs/_generate/results.py var/themes.db
"""

import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

PAGE = Path(__file__).parents[1] / "reference" / "results.md"
#: A query and what it answered.
BLOCK = re.compile(r"```sql\n(.*?)```\n(?:\n```text\n.*?```\n)?", re.DOTALL)


def queries() -> list[str]:
    """The queries, in their order."""
    return BLOCK.findall(PAGE.read_text("utf-8"))


def table(connection: sqlite3.Connection, query: str) -> str:
    """The answer as aligned columns."""
    cursor = connection.execute(query)
    rows = [[column[0] for column in cursor.description]]
    rows += [
        ["" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value) for value in row]
        for row in cursor
    ]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def main() -> None:
    """Rewrite the page."""
    with closing(sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)) as connection:
        text = BLOCK.sub(
            lambda found: f"```sql\n{found[1]}```\n\n```text\n{table(connection, found[1])}\n```\n",
            PAGE.read_text("utf-8"),
        )
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
