"""Write docs/benchmarks/numbers.md from what `scripts/bench --json docs/benchmarks/numbers.json` has measured.

What a case is stands in its docstring, in tests/benchmarks; its figures and its run come from the JSON.

python docs/_generate/figures.py
"""

import ast
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

from docs._generate.charts import charts
from tests.benchmarks.figures import Figure
from tests.benchmarks.record import FOLDER, Case, Described, Record, described, read, test_of

PAGE: Final = Path(__file__).parents[1] / "benchmarks" / "numbers.md"
FIGURES: Final = PAGE.with_suffix(".json")
#: The files of cases in the order of the page, and what each is about.
SECTIONS: Final = {
    "test_promises.py": "The seven promises, each on and off",
    "test_whole.py": "The whole system, full answers",
    "test_jobs.py": "The whole job beside the ways people write it",
    "test_start.py": "From nothing to the first profile",
    "test_scale.py": "How it grows",
    "test_batches.py": "A job in batches",
    "test_work.py": "How work is shared out and survives",
    "test_efficiency.py": "The LLM layer at 200 ms a call",
    "test_peers.py": "The LLM layer beside its peers",
    "test_hot_path.py": "What a call, a cached destination and an enqueued row cost",
    "test_cache.py": "The cache",
    "test_store.py": "How results become rows, and are read",
    "test_streaming.py": "How soon results are seen",
    "test_dashboard.py": "The dashboard",
    "test_rate_limit.py": "Rate limits",
    "test_profiling.py": "What the profiler costs",
}
#: The chart of a file's cases.
CHARTS: Final = {"test_promises.py": "promises.svg", "test_peers.py": "peers.svg", "test_jobs.py": "jobs.svg"}
_HEAD: Final = """\
# Numbers

Made by `docs/_generate/figures.py` of what `scripts/bench --json docs/benchmarks/numbers.json` has measured; no figure
is typed by hand. A figure is a median, with the lowest and the highest value behind it where it was measured more than
once ("runs"). Ratios compare what was measured in turns in one run. Times by the clock and absolute figures are this
machine's. **Whole system**: processes as users start them. **Layer**: a part of them, called from a test; what a user
gets is more than that.
"""


def shown(value: float) -> str:
    """Three digits, or all of a whole number."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"  # noqa: PLR2004  # digits


def cell(figure: Figure) -> str:
    """A median, and from where to where."""
    if figure.runs == 1:
        return shown(figure.median)
    return f"{shown(figure.median)} ({shown(figure.lowest)} to {shown(figure.highest)})"


def table(figures: list[Figure]) -> Iterator[str]:
    """A row a figure, a column a case."""
    cases = list(dict.fromkeys(one.case for one in figures))
    rows: dict[tuple[str, str], dict[str, Figure]] = {}
    for one in figures:
        rows.setdefault((one.title, one.unit), {})[one.case] = one
    runs = sorted({one.runs for one in figures})
    yield f"| {_escaped('runs: ' + ' or '.join(map(str, runs)))} | {' | '.join(map(_escaped, cases))} |"
    yield "|---" * (len(cases) + 1) + "|"
    for (title, unit), by_case in rows.items():
        name = f"{title}, {unit}" if unit else title
        cells = (cell(by_case[case]) if case in by_case else "" for case in cases)
        yield f"| {_escaped(name)} | {' | '.join(cells)} |"


def section(case: Described, kept: dict[str, Case], numbers: dict[str, int]) -> Iterator[str]:
    """What a test is, how to run it, and what it measured."""
    yield f"### {case.name.removeprefix('test_').replace('_', ' ').capitalize()}\n"
    yield f"{case.words}\n"
    run = {numbers[one.run] for one in kept.values() if one.figures}
    of = f", run {' and '.join(map(str, sorted(run)))}" if run else ""
    shares = [one.others for one in kept.values() if one.figures and one.others is not None]
    of += f"; others used up to {max(shares):.2f} of a core meanwhile" if shares else ""
    yield f"`scripts/bench -k {case.name.removeprefix('test_')}`{of}\n"
    not_run = [f"`{name.partition('::')[2]}`" for name, one in kept.items() if not one.figures]
    if not_run:
        yield f"Not run: {', '.join(not_run)}.\n"
    figures = [figure for one in kept.values() for figure in one.figures]
    if figures:
        yield "\n".join(table(figures)) + "\n"


def runs(record: Record) -> Iterator[str]:
    """When, of what commit, how and where everything was measured."""
    yield "## The runs\n"
    yield "| run | date | commit | command | load of the minute before |\n|---|---|---|---|---|"
    for number, run in enumerate(record.runs, 1):
        yield f"| {number} | {run.date} | {run.commit} | {_escaped(f'`{run.command}`')} | {run.load:g} |"
    for machine, those in groupby(enumerate(record.runs, 1), lambda one: one[1].machine):
        yield f"\nThe machine of run {_range([number for number, _ in those])}: {_machine(machine)}."


def page(record: Record) -> str:
    """The whole page."""
    numbers = {run.date: number for number, run in enumerate(record.runs, 1)}
    parts = [_HEAD, *runs(record), ""]
    cases, drawn = described(), charts(record)
    for file, title in SECTIONS.items():
        parts += [f"## {title}\n", f"{_opening(FOLDER / file)}\n"]
        if (chart := CHARTS.get(file)) in drawn:
            parts.append(f"![{title}]({chart})\n")
        for case in (one for one in cases if one.file == file):
            kept = {name: one for name, one in record.cases.items() if test_of(name) == f"{file}::{case.name}"}
            parts += section(case, kept, numbers)
    return "\n".join(parts).rstrip() + "\n"


def _opening(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""


def _machine(machine: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def _range(numbers: list[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    record = read(FIGURES)
    PAGE.write_text(page(record))
    for name, picture in charts(record).items():
        (PAGE.parent / name).write_text(picture)
