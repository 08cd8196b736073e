"""`themes results`: a job's profiles out of the database."""

import asyncio
import contextlib
import csv
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO, Any, Final

import click
from rich.console import Console
from rich.table import Table

from config.settings import Settings
from scripts.main import settings_from
from tasks.errors import ConfigError, JobNotFoundError
from workers.results.rows import ProfileRow
from workers.results.store import AsyncDatabaseManager

#: Themes named in a table's row.
TOP: Final = 3
#: Columns of the CSV: one row a theme.
CSV_COLUMNS: Final = (
    "destination", "country", "status", "rank", "category", "theme", "description", "confidence", "price_point",
    "traveler_types", "peak_months", "avoid_months", "sub_themes", "nano_themes", "rationale",
    "unique_selling_points", "authenticity_score", "citations", "model",
)  # fmt: skip


@click.command()
@click.argument("job", metavar="JOB")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["table", "jsonl", "json", "csv"]),
    default="table",
    show_default=True,
)
@click.option("-o", "--output", metavar="FILE", help="Write there instead of to standard output.")
def command(job: str, kind: str, output: str | None) -> None:
    """Print the profiles of JOB that are in the database, also while it runs."""
    settings = settings_from()
    with _destination(output) as out:
        asyncio.run(_write(settings, job, kind, out))


@contextlib.contextmanager
def _destination(output: str | None) -> Iterator[IO[str]]:
    if output is None:
        yield sys.stdout
        return
    try:
        with Path(output).open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as exc:
        raise ConfigError(f"-o {output}: cannot be written ({exc.strerror})") from exc


@contextlib.asynccontextmanager
async def reading(settings: Settings, job_id: str) -> AsyncIterator[AsyncDatabaseManager]:
    """The results database, opened for reading, which knows this job.

    Raises:
        DatabaseError: there is none, or it cannot be read.
        JobNotFoundError: it does not know the job.
    """
    store = AsyncDatabaseManager.from_settings(settings)
    try:
        await store.open()
        if await store.job(job_id) is None:
            raise JobNotFoundError(f"no job {job_id!r} in {store.place}; `themes status` lists the jobs")
        yield store
    finally:
        await store.close()


async def _write(settings: Settings, job_id: str, kind: str, out: IO[str]) -> None:
    async with reading(settings, job_id) as store:
        await _WRITERS[kind](store.profiles(job_id), out)


async def _jsonl(rows: AsyncIterator[ProfileRow], out: IO[str]) -> None:
    async for row in rows:
        out.write(row.payload + "\n")


async def _array(rows: AsyncIterator[ProfileRow], out: IO[str]) -> None:
    """A JSON array, written as it is read: a million profiles need no more memory than one."""
    separator = "[\n"
    async for row in rows:
        out.write(separator + row.payload)
        separator = ",\n"
    out.write("\n]\n" if separator != "[\n" else "[]\n")


async def _csv(rows: AsyncIterator[ProfileRow], out: IO[str]) -> None:
    writer = csv.writer(out)
    writer.writerow(CSV_COLUMNS)
    async for row in rows:
        profile = row.profile()
        for rank, theme in enumerate(profile.themes, start=1):
            season = theme.seasonality
            writer.writerow([
                _safe(profile.name), _safe(profile.country or ""), profile.status, rank, theme.category,
                _safe(theme.name), _safe(theme.description), theme.confidence, theme.price_point,
                _list(theme.traveler_types), _list(season and season.peak), _list(season and season.avoid),
                _list(theme.sub_themes), _list(theme.nano_themes), _safe(theme.rationale or ""),
                _list(theme.unique_selling_points), theme.authenticity_score, _list(theme.citations), profile.model,
            ])  # fmt: skip


async def _table(rows: AsyncIterator[ProfileRow], out: IO[str]) -> None:
    console = Console(file=out, width=None if out.isatty() else 160)
    console.print(await table_of(rows))


async def table_of(rows: AsyncIterator[ProfileRow]) -> Table:
    """One line a destination: how many themes, the surest of them, quality, calls and cache hits."""
    table = Table("destination", "themes", "top themes", "quality", "calls", "hits", "status", box=None)
    for column in (1, 3, 4, 5):
        table.columns[column].justify = "right"
    async for row in rows:
        profile = row.profile()
        table.add_row(
            ", ".join(filter(None, (row.name, row.country))),
            str(len(profile.themes)),
            ", ".join(profile.top_themes(TOP)),
            "-" if row.quality is None else f"{row.quality:.2f}",
            str(row.usage.llm_calls),
            str(row.usage.cache_hits),
            row.status,
        )
    return table


def _list(values: Any) -> str:
    return _safe("; ".join(values or ()))


def _safe(text: str) -> str:
    """Text that a spreadsheet does not take for a formula (OWASP, CSV injection)."""
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text


_WRITERS: Final = {"table": _table, "jsonl": _jsonl, "json": _array, "csv": _csv}
