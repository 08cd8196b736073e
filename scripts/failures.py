"""`themes failures`: which destinations of a job have no profile, and why."""

import asyncio
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from workers.results.store import AsyncDatabaseManager

from scripts.main import settings_from
from tasks.errors import JobNotFoundError


@click.command()
@click.argument("job", metavar="JOB")
@click.option("--json", "as_json", is_flag=True, help="One failure a line, as JSON.")
def command(job: str, *, as_json: bool) -> int:
    """List the destinations of JOB that failed; exit 1 when there are any."""
    failures = asyncio.run(_read(AsyncDatabaseManager(settings_from(), read_only=True), job))
    if as_json:
        for failure in failures:
            print(msgspec.json.encode(failure).decode())
    elif failures:
        Console().print(_table(failures))
    return 1 if failures else 0


async def _read(store: AsyncDatabaseManager, job_id: str) -> list[dict[str, Any]]:
    async with store:
        if await store.job(job_id) is None:
            raise JobNotFoundError(f"no job {job_id!r} in {store.place}; `themes status` lists the jobs")
        return await store.failures(job_id)


def _table(failures: list[dict[str, Any]]) -> Table:
    table = Table("destination", "stage", "error", "tries", "message", box=None)
    for failure in failures:
        name = ", ".join(filter(None, (failure["name"], failure["country"])))
        table.add_row(name, failure["stage"], failure["error_class"], str(failure["attempts"]), failure["message"])
    return table
