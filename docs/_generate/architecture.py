"""Draw the rooms and their layers: docs/explanation/architecture.svg, from the import contract in pyproject.toml.

python docs/_generate/architecture.py
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
WIDTH, ROW, GAP, TOP, LABEL = 920, 34, 8, 14, 134
STYLE = """text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #23211c; text-anchor: middle; }
.side { text-anchor: start; fill: #6d685c; } .room { fill: #ffffff; stroke: #c9c4b6; }
.inner { fill: #eef4f2; stroke: #b9cfc9; } .base { fill: #ffffff; stroke: #0b6b5d; }"""


def layers() -> list[tuple[str, list[str], str]]:
    """Rows from the top: which package, its rooms, and how they are drawn."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    inside = {one["containers"][0]: one["layers"] for one in contracts if "containers" in one}
    packages = next(one["layers"] for one in contracts if one["name"] == "the packages")
    rows = []
    for package in packages:
        for layer in inside.get(package, [package]):
            rooms = [name for name in layer.split(" | ") if (ROOT / package / name).is_dir() or package not in inside]
            if "app" in layer.split(" | "):
                rooms.insert(0, "app")
            if rooms:
                rows.append((package, rooms, "room" if package in inside else "base"))
            for room in rooms:
                inner = [name for one in inside.get(f"{package}.{room}", []) for name in one.split(" | ")]
                inner = [name for name in inner if (ROOT / package / room / name).is_dir()]
                if inner:
                    rows.append((f"{package}.{room}", inner, "inner"))
    return rows


def draw() -> str:
    """The picture."""
    parts, y, last = [], TOP, ""
    for package, rooms, style in layers():
        if package.partition(".")[0] != last:
            y, last = y + 10, package.partition(".")[0]
        parts.append(f'<text class="side" x="10" y="{y + 22}">{package if style != "base" else ""}</text>')
        width = (WIDTH - LABEL - 20 + GAP) // len(rooms) - GAP
        for at, room in enumerate(rooms):
            x = LABEL + at * (width + GAP)
            parts.append(f'<rect class="{style}" x="{x}" y="{y}" width="{width}" height="{ROW}" rx="5"/>')
            parts.append(f'<text x="{x + width // 2}" y="{y + 22}">{room}</text>')
        y += ROW + GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + TOP}">'
    return (
        f'{head}\n<style>{STYLE}</style>\n<rect width="{WIDTH}" height="{y + TOP}" fill="#f7f6f3"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    (ROOT / "docs" / "explanation" / "architecture.svg").write_text(draw(), encoding="utf-8")
