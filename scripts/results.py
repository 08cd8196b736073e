"""`themes results`: a job's profiles out of the database."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import IO, Any, Final

import click
import msgspec

from config.settings import Settings
from scripts.lib.output import destination_of, output_options
from scripts.lib.stored import job_in_database
from scripts.lib.terminal import columns, warn, width
from scripts.main import settings_from
from tasks.errors import ConfigError
from tasks.identity import own_id
from tasks.messages import JobOptions
from tasks.texts import clean_line
from workers.results.database.rows import ProfileRow
from workers.results.queries.export import WRITERS
from workers.results.queries.lookups import input_titles
from workers.results.queries.selection import Selection, month, where
from workers.results.queries.spelling import spelt

TOP: Final = 3
#: Lines of a table, unless `--limit` says otherwise: a table is for eyes, and is laid out as a whole.
TABLE_LINES: Final = 1_000


@click.command(epilog="Example: themes results df5a3a --format csv -o themes.csv")
@click.argument("job", metavar="JOB")
@click.option("--format", "kind", type=click.Choice(["table", *WRITERS]), default="table", show_default=True)
@output_options
@click.option(
    "--where", "pairs", metavar="KEY=VALUE", multiple=True,
    help="Only destinations with this value: country, region, name, destination_id, status, model, or a column of the "
    "input. Again with another key: both; with the same: either.",
)  # fmt: skip
@click.option("--min-quality", type=click.FloatRange(0, 1), help="Only profiles of this overall quality, 0-1, or more.")
@click.option("--category", "categories", metavar="NAME", multiple=True, help="Only themes of this category.")
@click.option("--min-confidence", type=click.FloatRange(0, 1), help="Only themes this sure, 0-1, or surer.")
@click.option("--month", "months", metavar="MONTH", multiple=True, help="Only themes at their best in this month.")
@click.option("--traveler", "travelers", metavar="TYPE", multiple=True, help="Only themes for these travellers.")
@click.option("--price", "prices", metavar="PRICE", multiple=True, help="Only themes of this price point.")
@click.option(
    "--order", type=click.Choice(["input", "finished"]), default="input", show_default=True,
    help="Destinations as the input has them, or as they were finished.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most N destinations.")
def command(
    *, job: str, kind: str, output: str | None, force: bool, pairs: tuple[str, ...], months: tuple[str, ...],
    order: str, limit: int | None, **chosen: Any,
) -> int:  # fmt: skip
    """Print the profiles of JOB that are in the database, also while it runs.

    Options about themes choose themes, and leave out destinations without one. An option that is given again widens.
    Values are compared without case. Exit 1 where options choose and nothing is left.
    """
    settings = settings_from()
    if kind == "parquet" and output is None:
        raise ConfigError("--format parquet: is no text; name a file with -o FILE")
    selection = Selection(months=tuple(month(text) for text in months), **chosen)
    with destination_of(output, force=force, binary=kind == "parquet") as out:
        return asyncio.run(_write(settings, job, kind, out, pairs=pairs, chosen=selection, order=order, limit=limit))


async def _write(
    settings: Settings,
    job_id: str,
    kind: str,
    out: IO[Any],
    *,
    pairs: tuple[str, ...],
    chosen: Selection,
    order: str,
    limit: int | None,
) -> int:
    """Write what is chosen; 1 where something is to be chosen and nothing is left, else 0."""
    written = Counter[str]()

    async def counted(rows: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for row in rows:
            written["rows"] += 1
            yield row

    async with job_in_database(settings, job_id) as (store, job):
        job_id = job.job_id
        titles = await input_titles(store, job_id)
        if pairs:
            chosen = replace(chosen, where=where(pairs, titles))
        chosen, unknown = await spelt(store, job_id, chosen)
        conditions = chosen.conditions(store.dialect)
        if kind == "table":
            options = msgspec.json.decode(job.options, type=JobOptions) if job.options else JobOptions()
            profiles = counted(store.profiles(job_id, conditions, as_finished=order == "finished"))
            await _table(profiles, out, chosen, limit, options.id_column)
        else:
            rows = counted(store.exported(job_id, conditions, as_finished=order == "finished"))
            await WRITERS[kind](rows if limit is None else _first(rows, limit), out, chosen, titles)
    if not written and chosen != Selection() and not unknown:
        unknown = [f"no profile of job {job_id} meets all of the options"]
    for said in unknown:
        warn(clean_line(said))
    return 0 if written or chosen == Selection() else 1


async def _first(rows: AsyncIterator[Any], count: int) -> AsyncIterator[Any]:
    async for row in rows:
        yield row
        count -= 1
        if not count:
            return


async def _table(
    rows: AsyncIterator[ProfileRow], out: IO[str], chosen: Selection, limit: int | None, id_column: str | None
) -> None:
    shown = [row async for row in _first(rows, (limit or TABLE_LINES) + 1)]
    for line in lines_of(
        shown[: limit or TABLE_LINES], chosen, id_column, width=width() if out is sys.stdout else None
    ):
        print(line, file=out)
    if limit is None and len(shown) > TABLE_LINES:
        print(f"the first {TABLE_LINES}; all of them: --format jsonl (or csv, json), or --limit N", file=sys.stderr)


def lines_of(
    rows: list[ProfileRow], chosen: Selection | None = None, id_column: str | None = None, *, width: int | None = None
) -> list[str]:
    """One line a destination: its id in the input, if any has one, number of themes, quality, and the surest themes."""
    found: list[tuple[str, ...]] = []
    for row in rows:
        profile = row.profile() if chosen is None else chosen.of(row.profile())
        own = own_id(profile.extra, id_column=id_column)
        found.append((
            own.value if own else "",
            clean_line(", ".join(filter(None, (row.name, row.country)))),
            str(len(profile.themes)),
            "-" if row.quality is None else f"{row.quality:.2f}",
            "" if row.status == "ok" else row.status,
            " · ".join(profile.top_themes(TOP)),
        ))  # fmt: skip
    titles = ("id", "destination", "themes", "quality", "", "top themes")
    limits = {0: width // 6, 1: width * 2 // 5} if width else {}
    return columns(found, titles=titles, right=(2, 3), limits=limits, width=width)
