"""`themes failures`: why destinations of a job have no profile, or a partial one."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import click
import msgspec
from rich.cells import cell_len

from scripts.lib.stored import job_in_database
from scripts.lib.terminal import columns, cut, width
from scripts.main import settings_from
from tasks.jobs.registry import options_of
from tasks.jobs.short_ids import short_id
from tasks.texts import clean_line
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.queries.reasons import (
    Reason,
    failure_reasons,
    partial_reasons,
    split,
    without_class,
)


@click.command(epilog="Example: themes failures df5a3a --partial")
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
    settings = settings_from()
    async with job_in_database(settings, job_id) as (store, row):
        job_id = row.job_id
        if is_each:
            async for fields in _each(store, job_id, partial=partial):
                print(msgspec.json.encode(fields).decode() if as_json else _line(fields))
                count += 1
            return 1 if count else 0
        kinds = [("failed", reason) for reason in await failure_reasons(store, job_id)]
        if partial:
            kinds += [("partial", reason) for reason in await partial_reasons(store, job_id, by_stage=True)]
        for line in kind_lines(kinds, width=width()):
            print(line)
        if kinds:
            with_redis = settings.redis.enabled and not options_of(row.options).is_in_process
            again = f"{'themes retry' if with_redis else 'themes run --resume'} {short_id(job_id)}"
            print(f"retry: {again}{' --partial' if partial else ''}")
    return 1 if kinds else 0


def kind_lines(kinds: Sequence[tuple[str, Reason]], *, width: int | None = None) -> list[str]:
    """A kind of reason: how many, class, stage and message, which has its own line where it is long; some places."""
    heads = columns(
        [(f"{reason.destinations:,} {outcome}", clean_line(reason.error_class), ", ".join(reason.stages))
         for outcome, reason in kinds]
    )  # fmt: skip
    lines = []
    for head, (_, reason) in zip(heads, kinds, strict=True):
        message = clean_line(reason.message)
        whole = f"{head}{' ' * (max(map(len, heads)) - len(head))}  {message}"
        fits = width is None or cell_len(whole) <= width
        left = reason.destinations - len(reason.places)
        places = " · ".join([*map(clean_line, reason.places), *([f"and {left:,} more"] if left > 0 else [])])
        lines += [whole] if fits else [cut(head, width), cut(f"  {message}", width)]
        lines.append(cut(f"  {places}", width))
    return lines


def _line(fields: dict[str, Any]) -> str:
    name = ", ".join(filter(None, (fields["name"], fields["country"])))
    said = without_class(fields["error_class"], fields["message"])
    return clean_line(f"{name}  {fields['stage']}  {fields['error_class']}: {said}")


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
