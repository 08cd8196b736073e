"""`themes failures`: why destinations of a job have no profile, or a partial one."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import click
import msgspec

from scripts.lib.stored import job_in_database
from scripts.main import settings_from
from tasks.texts import clean_line
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.queries.reasons import Reason, failure_reasons, partial_reasons, split


@click.command()
@click.argument("job", metavar="JOB")
@click.option("--partial", is_flag=True, help="Also what partial profiles lack.")
@click.option("--all", "is_each", is_flag=True, help="Each destination, instead of each kind of reason.")
@click.option("--json", "as_json", is_flag=True, help="Each destination as one line of JSON.")
def command(job: str, *, partial: bool, is_each: bool, as_json: bool) -> int:
    """Show why destinations of JOB failed, the most frequent first; exit 1 when any did (with --partial: or lacks).

    Messages that differ in numbers alone are one.
    """
    return asyncio.run(_show(job, partial=partial, is_each=is_each or as_json, as_json=as_json))


async def _show(job_id: str, *, partial: bool, is_each: bool, as_json: bool) -> int:
    count = 0
    async with job_in_database(settings_from(), job_id) as (store, _):
        if is_each:
            async for fields in _each(store, job_id, partial=partial):
                print(msgspec.json.encode(fields).decode() if as_json else _line(fields))
                count += 1
            return 1 if count else 0
        for reason in await failure_reasons(store, job_id):
            print(_kind(reason, "failed"))
            count += 1
        for reason in await partial_reasons(store, job_id, by_stage=True) if partial else ():
            print(_kind(reason, "partial"))
            count += 1
    return 1 if count else 0


def _kind(reason: Reason, outcome: str) -> str:
    said = f"{reason.error_class}: {reason.message}" if reason.error_class else reason.message
    example = f"for instance {reason.example}" if reason.destinations > 1 else reason.example
    return clean_line(f"{reason.destinations}  {outcome}  {', '.join(reason.stages)}  {said}  ({example})")


def _line(fields: dict[str, Any]) -> str:
    name = ", ".join(filter(None, (fields["name"], fields["country"])))
    return clean_line(f"{name}  {fields['stage']}  {fields['error_class']}: {fields['message']}")


async def _each(store: AsyncDatabaseManager, job_id: str, *, partial: bool) -> AsyncIterator[dict[str, Any]]:
    async for failure in store.failures(job_id):
        yield msgspec.to_builtins(failure)
    if not partial:
        return
    async for row in store.profiles(job_id):
        if row.status != "partial":
            continue
        for stage, reason in dict.fromkeys((one.stage, one.reason) for one in row.profile().missing):
            error_class, message = split(reason)
            yield {
                "job_id": job_id, "destination_id": row.destination_id, "name": row.name, "country": row.country,
                "stage": stage, "error_class": error_class, "message": message, "is_partial": True,
            }  # fmt: skip
