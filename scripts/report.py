"""`themes report`: where a job's time and money went, and what to change."""

import asyncio
import io
from functools import partial
from typing import Final

import click
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from config.settings import Settings
from scripts.lib.output import destination_of, output_options
from scripts.lib.stored import known_id
from scripts.lib.terminal import console as terminal
from scripts.lib.terminal import say, table
from scripts.main import settings_from
from tasks.texts import count
from workers.observe.format import duration, size, times
from workers.report.collect import gather
from workers.report.page import cost, figures, headline, of, page, share, went
from workers.report.report import JobReport

#: Columns of a report in a file.
FILE_WIDTH: Final = 120
#: Share of the time of all prompts below which a step is shown with --full only.
NAMED_SHARE: Final = 0.01
BAR: Final = 24
#: Columns of a terminal below which there are fewer columns of a table, and points of a curve.
WIDE: Final = 100
NARROW_POINTS: Final = 40
STEPS: Final = " ▁▂▃▄▅▆▇█"


@click.command(epilog="Example: themes report df5a3a -o report.html")
@click.argument("job", metavar="JOB")
@output_options
@click.option("--full", is_flag=True, help="Also the steps that took less than 1 % of the time.")
@click.option("--json", "as_json", is_flag=True, help="One object, on standard output.")
def command(job: str, output: str | None, *, force: bool, full: bool, as_json: bool) -> None:
    """Tell where the time and the money of JOB went, what bounds it, and what to change; also while it runs.

    With -o FILE the report is one HTML file, or text where its name ends in .txt.
    """
    settings = settings_from()
    with destination_of(output, force=force) as out:
        report = asyncio.run(_gathered(settings, job))
        if output:
            out.write(text_of(report) if output.endswith(".txt") else page(report))
    if output:
        say(f"the report is in {output}")
    if as_json:
        print(report.json())
    elif not output:
        show(report, terminal(), full=full)


async def _gathered(settings: Settings, job: str) -> JobReport:
    return await gather(settings, await known_id(settings, job))


def text_of(report: JobReport) -> str:
    """All of it, as a file has it."""
    console = Console(width=FILE_WIDTH, record=True, file=io.StringIO(), highlight=False)
    show(report, console, full=True)
    return console.export_text()


def show(report: JobReport, console: Console, *, full: bool) -> None:
    is_wide = console.width >= WIDE
    head, curves = partial(_head, is_wide=is_wide), partial(_curves, is_wide=is_wide)
    steps = partial(_waterfall, full=full, is_wide=is_wide)
    for part in (head, _findings, curves, steps, _savings, _optimisations, _failures, _slowest, _workers):
        shown = part(report)
        if shown is not None:
            console.print(shown)
            console.print()


def _head(report: JobReport, *, is_wide: bool) -> RenderableType:
    job = report.job
    grid = Table.grid(padding=(0, 2))
    cells = [
        f"[dim]{words}[/] [bold]{escape(number)}[/]" + (f" [dim]{escape(more)}[/]" if more else "")
        for _, words, number, more in figures(report)
    ]
    beside = 3 if is_wide else 2
    for start in range(0, len(cells), beside):
        grid.add_row(*cells[start : start + beside])
    state = "paused" if job["paused"] else job["state"]
    title = Text.assemble((str(job["name"]), "bold"), f"  {job['job_id']}  {state}")
    return Group(title, *(Text(note, style="yellow") for note in report.notes), grid)


def _findings(report: JobReport) -> RenderableType:
    lines: list[RenderableType] = [Text(report.verdict.words), Text(headline(report), style="bold")]
    for number, each in enumerate(report.findings, 1):
        forecast = f", forecast {times(each.gain)}" if each.gain else ""
        part = f"  {each.share:.0%}" if each.share else ""
        lines.append(Text.assemble(f"{number}. ", (each.name, "bold"), f"{part}{forecast}"))
        lines.append(Padding(Text(each.evidence), (0, 0, 0, 3), expand=False))
        lines.append(Padding(Text(each.advice, style="green"), (0, 0, 0, 3), expand=False))
    return Group(*lines)


def _curves(report: JobReport, *, is_wide: bool) -> RenderableType | None:
    points = report.account.timeline
    if not report.account.runs or not points:
        return None
    grid = Table.grid(padding=(0, 2))
    for words, series in (
        ("destinations/s", [point.ended / point.seconds for point in points]),
        ("LLM calls/s", [point.calls / point.seconds for point in points]),
        ("in work", [point.in_work for point in points]),
    ):
        grid.add_row(
            Text(words, style="dim"),
            Text(curve(series if is_wide else coarser(series)), style="cyan"),
            Text(f"peak {max(series):.3g}"),
        )
    grid.add_row("", Text(f"0 to {duration(points[-1].at + points[-1].seconds)}", style="dim"), "")
    return Group(Text("Over time", style="bold"), grid)


def coarser(values: list[float]) -> list[float]:
    """Means of so many neighbours that a narrow terminal has room for all."""
    size = -(-len(values) // NARROW_POINTS) or 1
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(part) / len(part) for part in parts]


def curve(values: list[float]) -> str:
    most = max(values, default=0.0) or 1.0
    return "".join(STEPS[0 if value <= 0 else max(1, round(value / most * (len(STEPS) - 1)))] for value in values)


def _waterfall(report: JobReport, *, full: bool, is_wide: bool) -> RenderableType | None:
    if not report.hops:
        return None
    titles = ("where the time went", "share", "times", "median", "p95", "p99", "total", "")
    kept = range(len(titles)) if is_wide else (0, 1, 3, 4, 6)
    shown = table(*(titles[number] for number in kept), right=slice(1, 7 if is_wide else None))
    begin, whole, left_out = 0.0, sum(hop.total_seconds for hop in report.hops if hop.share is not None), 0
    for hop in report.hops:
        if not full and hop.total_seconds < NAMED_SHARE * whole:
            left_out += 1
            begin += hop.share or 0.0
            continue
        part = hop.share or 0.0
        before, wide = round(begin * BAR), max(1, round(part * BAR)) if part else 0
        bar = " " * min(before, BAR - min(wide, BAR)) + "█" * min(wide, BAR)
        begin += part
        cells: tuple[RenderableType, ...] = (
            hop.words, "" if hop.share is None else share(hop.share), f"{hop.count:,}",
            *(duration(ms / 1000) for ms in (hop.p50_ms, hop.p95_ms, hop.p99_ms)), duration(hop.total_seconds),
            Text(bar, style="cyan"),
        )  # fmt: skip
        shown.add_row(*(cells[number] for number in kept))
    more = f"{count(left_out, 'step')} below {NAMED_SHARE:.0%} of the time: --full shows them"
    return Group(shown, Text(more, style="dim")) if left_out else shown


def _savings(report: JobReport) -> RenderableType:
    shown = table("what was not asked", "calls", "tokens", "money", right=slice(1, None))
    for each in report.savings:
        tokens = "" if each.tokens is None else f"{each.tokens:,}"
        shown.add_row(each.words, f"{each.calls:,}", tokens, "" if each.by == "memory" else cost(each.usd))
    return shown


def _optimisations(report: JobReport) -> RenderableType:
    shown = table("optimisation", "", "what it brought")
    for each in report.optimisations:
        switch = "?" if each.is_on is None else "on" if each.is_on else "off"
        shown.add_row(each.name, switch, Text(each.brought))
    return shown


def _failures(report: JobReport) -> RenderableType | None:
    if not report.account.failures:
        return None
    shown = table("failures", "stage", "destinations", "one of the messages")
    for each in report.account.failures:
        shown.add_row(Text(each.error_class), Text(each.stage), f"{each.destinations:,}", Text(each.message))
    return shown


def _slowest(report: JobReport) -> RenderableType | None:
    if not report.slowest:
        return None
    shown = table("slowest", "time", "calls", "outcome", "where it went")
    for each in report.slowest:
        shown.add_row(Text(each.name), duration(each.seconds), str(each.calls), each.outcome, went(each))
    return shown


def _workers(report: JobReport) -> RenderableType | None:
    if not report.processes:
        return None
    titles = ("worker", "runs", "calls", "lanes busy", "connections", "cores", "peak memory")
    shown = table(*titles, right=slice(1, None))
    for each in report.processes:
        shown.add_row(
            Text(each.name), f"{each.runs:,}", f"{each.calls:,}", of(each.lanes_busy, each.lanes),
            of(each.pool_busy, each.pool), "" if each.cpu_cores is None else f"{each.cpu_cores:.2f}",
            "" if each.rss_bytes is None else size(each.rss_bytes),
        )  # fmt: skip
    return shown
