"""Draw the charts of docs/benchmarks from the record of figures: the promises, and what stands beside our jobs.

`docs/_generate/figures.py` writes them. A bar is a median, the line on it reaches from the lowest to the highest run.
"""

from collections.abc import Iterable, Iterator
from typing import Final
from xml.sax.saxutils import escape

from tests.benchmarks.figures import Figure
from tests.benchmarks.record import Record

WIDTH: Final = 920
LABEL, ROW, BAR, RIGHT, TOP, HEAD = 270, 30, 16, 240, 16, 34
STYLE: Final = """text { font: 13px system-ui, sans-serif; fill: #23211c; } .head { font-weight: 600; }
.dim { fill: #6d685c; } .paper { fill: #f7f6f3; } .bar { fill: #9db8b2; } .ours { fill: #0b6b5d; }
.less { fill: #b4551d; } .band { fill: #e3d9b4; } .line { stroke: #23211c; stroke-width: 1.5; }
.axis { stroke: #c9c4b6; }
@media (prefers-color-scheme: dark) { text { fill: #ecebe6; } .dim { fill: #a5a196; } .paper { fill: #1b1c1a; }
.bar { fill: #4f6b65; } .ours { fill: #3fae9a; } .less { fill: #d98247; }
.band { fill: #4a4327; } .line { stroke: #ecebe6; } .axis { stroke: #4a4a45; } }"""
#: What was promised of each, in percent less; the streaming promise has no number.
PROMISED: Final[dict[str, tuple[float, float] | None]] = {
    "persistent cache: LLM calls": (60, 80),
    "connection pool: seconds of a response": (40, 60),
    "batched database: seconds of a result": (50, 70),
    "work stealing: seconds of a job": (30, 50),
    "streaming: seconds to the first result": None,
    "compression: memory of Redis": (20, 40),
    "all seven: seconds of a job": (30, 50),
}
#: What charts call those whose cases have short names.
NAMES: Final = {"bare": "bare aiohttp", "openai": "openai SDK", "lm_deluge": "lm-deluge"}
#: (Test, title) -> the heading of its panel.
PEERS: Final = {
    ("test_peers.py::test_cpu_of_a_call", "CPU / bare aiohttp's"): "CPU of a call, times that of bare aiohttp",
    ("test_peers.py::test_efficiency_at_200_ms_beside_peers[512", "share of the ideal"): (
        "Share of the ideal at 200 ms a call, 512 in flight, one process"
    ),
    (
        "test_peers.py::test_answers_out_of_the_cache",
        "CPU an answer",
    ): "CPU of an answer out of the cache, a new process",
    ("test_peers.py::test_equal_prompts", "calls for 64 equal prompts in each of two processes"): (
        "Calls for 64 equal prompts in each of two processes"
    ),
}
JOBS: Final = {
    ("test_jobs.py", "200 ms: destinations"): "Destinations a second, 200 ms a call, 15 calls in flight",
    ("test_jobs.py", "200 ms: first result after"): "Seconds to the first result, 200 ms a call",
    ("test_jobs.py", "200 ms, 30 % repeated: LLM calls a destination"): (
        "LLM calls a destination, 30 % repeated in other spellings"
    ),
    ("test_jobs.py", "0 ms: CPU a destination, all of these"): "CPU a destination, latency 0",
    ("test_jobs.py", "200 ms: memory of all these but Redis"): "Memory of worker and consumer",
    ("test_jobs.py", "killed: destinations without a row"): (
        "Destinations without a row after kill -9 of everything and a start again"
    ),
    ("test_jobs.py", "killed: LLM calls beyond 16 a row"): "LLM calls that are in no row, after the same",
}


def charts(record: Record) -> dict[str, str]:
    """File name -> picture, of what was measured."""
    found = {"promises.svg": promises(record), "peers.svg": panels(record, PEERS), "jobs.svg": panels(record, JOBS)}
    return {name: picture for name, picture in found.items() if picture}


def promises(record: Record) -> str:
    """What is less with each optimisation than without it, beside what was promised."""
    told = {one.title: one for one in figures_of(record, "test_promises.py") if one.case == "with it, less"}
    rows = [(title, told[title], band) for title, band in PROMISED.items() if title in told]
    if not rows:
        return ""
    lowest = min(0.0, *(one.lowest for _, one, _ in rows))
    scale = (WIDTH - LABEL - RIGHT) / (100 - lowest)
    zero = LABEL - lowest * scale

    def at(percent: float) -> float:
        return zero + percent * scale

    parts = [*_head(TOP, "Less with it than without it; light: what was promised")]
    for number, (title, one, band) in enumerate(rows):
        y = TOP + HEAD + number * ROW
        if band:
            parts.append(_rect("band", at(band[0]), y - 3, (band[1] - band[0]) * scale, BAR + 6))
        kind = "ours" if one.median >= 0 else "less"
        parts.append(_rect(kind, min(zero, at(one.median)), y, abs(one.median) * scale, BAR))
        parts += _whisker(at(one.lowest), at(one.highest), y)
        promise = f"promised {band[0]:g} to {band[1]:g} %" if band else "promised: not at the end"
        parts += [
            _text(10, y, title),
            _text(WIDTH - RIGHT + 8, y, f"{one.median:.0f} %"),
            _dim(WIDTH - RIGHT + 56, y, promise),
        ]
    height = TOP + HEAD + len(rows) * ROW
    parts.append(f'<line class="axis" x1="{zero:.0f}" x2="{zero:.0f}" y1="{TOP + HEAD - 6}" y2="{height - 6}"/>')
    return _picture(parts, height + 6)


def panels(record: Record, wanted: dict[tuple[str, str], str]) -> str:
    """A panel for each (test, title) that was measured, with a bar for everybody who has any of these figures."""
    told = {asked: {one.case: one for one in figures_of(record, asked[0]) if one.title == asked[1]} for asked in wanted}
    who = list(dict.fromkeys(case for some in told.values() for case in some))
    made = [
        (head, next(iter(told[asked].values())).unit, [(one, told[asked].get(one)) for one in who])
        for asked, head in wanted.items()
        if told[asked]
    ]
    return bars(made) if made else ""


def bars(drawn: Iterable[tuple[str, str, list[tuple[str, Figure | None]]]]) -> str:
    """Panels of (title, unit, [(who, figure)]): a bar each, ours marked; whoever has no figure is named without one."""
    parts, y = list[str](), TOP
    for title, unit, rows in drawn:
        parts += _head(y, title)
        y += HEAD
        most = max((one.highest for _, one in rows if one), default=1.0) or 1.0
        scale = (WIDTH - LABEL - RIGHT) / most
        for who, one in rows:
            parts.append(_text(10, y, NAMES.get(who, who)))
            if one is None:
                parts.append(_dim(LABEL, y, "cannot, or was not measured"))
            else:
                parts.append(_rect("ours" if who.startswith("ours") else "bar", LABEL, y, one.median * scale, BAR))
                parts += _whisker(LABEL + one.lowest * scale, LABEL + one.highest * scale, y)
                parts.append(_text(WIDTH - RIGHT + 8, y, f"{one.median:.3g} {unit}"))
            y += ROW
        y += TOP
    return _picture(parts, y)


def figures_of(record: Record, beginning: str) -> list[Figure]:
    """All that the cases told whose names begin so: those of a file, of a test, of one of its parameters."""
    return [one for name, case in record.cases.items() if name.startswith(beginning) for one in case.figures]


def _head(y: float, words: str) -> Iterator[str]:
    yield f'<text class="head" x="10" y="{y + 14:.0f}">{escape(words)}</text>'


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.0f}" y="{y + 13:.0f}">{escape(words)}</text>'


def _dim(x: float, y: float, words: str) -> str:
    return f'<text class="dim" x="{x:.0f}" y="{y + 13:.0f}">{escape(words)}</text>'


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.0f}" width="{max(1.0, width):.1f}" height="{height}" rx="2"/>'


def _whisker(left: float, right: float, y: float) -> Iterator[str]:
    if right - left >= 1:
        middle = y + BAR / 2
        yield f'<line class="line" x1="{left:.1f}" x2="{right:.1f}" y1="{middle}" y2="{middle}"/>'


def _picture(parts: list[str], height: float) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}">'
    paper = f'<rect class="paper" width="{WIDTH}" height="{height:.0f}"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", paper, *parts, "</svg>\n"])
