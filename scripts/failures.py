"""`themes failures`: which destinations of a job have no profile, and why."""

import asyncio

import click
import msgspec
from rich.console import Console
from rich.table import Table

from config.settings import Settings
from scripts.main import settings_from
from scripts.results import reading
from workers.results.rows import FailureRow


@click.command()
@click.argument("job", metavar="JOB")
@click.option("--json", "as_json", is_flag=True, help="One failure a line, as JSON.")
def command(job: str, *, as_json: bool) -> int:
    """List the destinations of JOB that failed; exit 1 when there are any."""
    failures = asyncio.run(_read(settings_from(), job))
    if as_json:
        for failure in failures:
            print(msgspec.json.encode(failure).decode())
    elif failures:
        Console().print(_table(failures))
    return 1 if failures else 0


async def _read(settings: Settings, job_id: str) -> list[FailureRow]:
    async with reading(settings, job_id) as store:
        return [failure async for failure in store.failures(job_id)]


def _table(failures: list[FailureRow]) -> Table:
    table = Table("destination", "stage", "error", "tries", "message", box=None)
    for failure in failures:
        name = ", ".join(filter(None, (failure.name, failure.country)))
        table.add_row(name, failure.stage, failure.error_class, str(failure.attempts), failure.message)
    return table
