"""Draw the tables of the results database as SVG: docs/reference/schema.svg, from workers/results/database/tables.py.

python docs/_generate/schema.py
"""

from pathlib import Path
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects.sqlite import dialect

from workers.results.database.tables import USAGE_COLUMNS, USAGE_TABLES, metadata

#: Column and row of each table in the picture; what hangs on something stands to the right of it.
PLACES = (
    ("jobs", "dead_letters", "counters"),
    ("destinations", "failures", "attempts"),
    ("profiles", "job_measurements"),
    ("profile_themes",),
)
WIDTH, GAP, LINE, TOP = 236, 56, 17, 20
STYLE = """text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #23211c; }
.name { font-weight: 700; fill: #ffffff; } .kind { fill: #8a8577; } .key { font-weight: 700; }
.box { fill: #ffffff; stroke: #c9c4b6; } .head { fill: #0b6b5d; }
.arrow { fill: none; stroke: #8a8577; stroke-width: 1.3; }"""


def lines_of(table: Table) -> list[tuple[str, str, bool]]:
    """Name, type and whether it is (part of) the key, of each column; the many of a usage are one line."""
    found = []
    for column in table.columns:
        if table.name in USAGE_TABLES and column.name in USAGE_COLUMNS:
            if column.name == USAGE_COLUMNS[0]:
                found.append((f"llm_calls … cost_usd ({len(USAGE_COLUMNS)})", "", False))
            continue
        found.append((column.name, column.type.compile(dialect=dialect()), column.primary_key))
    return found


def draw() -> str:
    """The picture."""
    boxes: dict[str, tuple[int, int, int]] = {}
    parts: list[str] = []
    for at, names in enumerate(PLACES):
        x, y = GAP // 2 + at * (WIDTH + GAP), TOP
        for name in names:
            lines = lines_of(metadata.tables[name])
            height = LINE * (len(lines) + 1) + 14
            boxes[name] = (x, y, height)
            parts.append(f'<rect class="box" x="{x}" y="{y}" width="{WIDTH}" height="{height}" rx="6"/>')
            parts.append(f'<path class="head" d="M{x} {y + 24} v-18 q0 -6 6 -6 h{WIDTH - 12} q6 0 6 6 v18 z"/>')
            parts.append(f'<text class="name" x="{x + 10}" y="{y + 17}">{name}</text>')
            for number, (column, kind, is_key) in enumerate(lines, start=1):
                below = y + 24 + number * LINE - 2
                bold = ' class="key"' if is_key else ""
                parts.append(f'<text{bold} x="{x + 10}" y="{below}">{column}</text>')
                parts.append(
                    f'<text class="kind" x="{x + WIDTH - 10}" y="{below}" text-anchor="end">{kind.lower()}</text>'
                )
            y += height + 22
    parts += [_arrow(boxes, child, parent) for child, parent in sorted(_references())]
    width = len(PLACES) * (WIDTH + GAP)
    height = max(y + h for _, y, h in boxes.values()) + TOP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
    return f'{head}\n<style>{STYLE}</style>\n<rect width="{width}" height="{height}" fill="#f7f6f3"/>\n' + (
        "\n".join(parts) + "\n</svg>\n"
    )


def _references() -> set[tuple[str, str]]:
    return {
        (table.name, key.column.table.name) for table in metadata.tables.values() for key in table.foreign_keys
    }  # fmt: skip


def _arrow(boxes: dict[str, Any], child: str, parent: str) -> str:
    """From a table to the one that it hangs on."""
    (cx, cy, _), (px, py, height) = boxes[child], boxes[parent]
    start, end = cy + 12, min(max(cy + 12, py + 12), py + height - 12)
    if cx == px:
        return f'<path class="arrow" d="M{cx} {start} h-14 V{py + 12} h14"/>'
    middle = cx - GAP / 2
    return f'<path class="arrow" d="M{cx} {start} H{middle} V{end} H{px + WIDTH}"/>'


if __name__ == "__main__":
    (Path(__file__).parents[1] / "reference" / "schema.svg").write_text(draw(), encoding="utf-8")
