"""`themes run`: a job in this one process, without Redis and without Celery."""

import os
import sys
from typing import Any

import click

from config.settings import Settings
from scripts.lib.fields import fields_option, wanted_fields
from scripts.lib.local_run import RunRequest, reader_of, run
from scripts.lib.only_missing import OnlyMissing
from scripts.lib.partial import fail_on_partial
from scripts.lib.reading import reading_options
from scripts.lib.terminal import say_unpriced
from scripts.lib.tiers import tier_options
from scripts.lib.wanted import Wanted
from scripts.main import FILE, settings_from
from tasks.jobs.budget import check, unpriced


@click.command(epilog="Example: themes run cities.csv --limit 10 --budget 0.50")
@click.argument("file", type=FILE, metavar="FILE|-", required=False)
@click.option("--resume", metavar="JOB", help="Go on with JOB: ask for what has no profile, and for nothing else.")
@click.option("--partial", is_flag=True, help="With --resume: also what has a partial profile.")
@click.option("--stage", "stages", metavar="NAME", multiple=True, help="With --resume: only what lacks this stage.")
@fail_on_partial
@click.option("--name", metavar="NAME", help="The job's name in lists; by default the file's.")
@reading_options
@click.option("--only-missing", is_flag=True, help="Leave out what has a complete profile by today's prompts.")
@click.option("--no-cache", is_flag=True, help="Ask the LLM again even where the answer is known.")
@click.option("--budget", type=float, metavar="USD", help="Stop before the job costs more; --resume goes on.")
@fields_option
@tier_options
@click.option("--dry-run", is_flag=True, help="Ask nothing; forecast calls, tokens, cost and time.")
@click.option(
    "--json", "as_json", is_flag=True,
    help="At the end print the job as one JSON object, instead of its id; with --dry-run the forecast.",
)  # fmt: skip
def command(
    *, file: str | None, resume: str | None, stages: tuple[str, ...], budget: float | None, partial: bool,
    no_cache: bool, fields: str | None, dry_run: bool, as_json: bool, **given: Any,
) -> int:  # fmt: skip
    """Do the job of FILE (CSV, JSONL, JSON, text; - is standard input) here, without Redis, and print its id.

    Ctrl-C lets calls under way end and keeps their answers; a second one does not wait. `--resume JOB` goes on, also
    after a kill: nothing that is done is asked again, and nothing that was answered is paid again.
    """
    settings = settings_from()
    if file is None and resume is None:
        raise click.UsageError("name a FILE (- is standard input), or a job with --resume JOB")
    if resume and (
        no_cache or fields or any(given[one] for one in ("name", "only_missing", "columns", "tier", "deadline_at"))
    ):
        raise click.UsageError(
            "--resume goes on with a job as it is: leave out --name, --no-cache, --only-missing, --fields, "
            "--column, --tier and --deadline"
        )
    if (partial or stages) and not resume:
        raise click.UsageError("--partial and --stage go with --resume JOB")
    if budget is not None:
        check(budget, settings)
    wanted = () if resume else wanted_fields(settings, fields)
    again = Wanted(stages=stages, partial=partial or bool(stages))
    request = RunRequest(file, resume, budget_usd=budget, use_cache=not no_cache, again=again, fields=wanted, **given)
    if dry_run:
        if resume or file is None:
            raise click.UsageError("--dry-run forecasts a new job: name a FILE, and leave out --resume")
        return _forecast(settings, file, request, as_json=as_json)
    say_unpriced(unpriced(settings))
    result = run(settings, request, on_job=None if as_json else _print_id)
    if as_json and result.job:
        print(result.job.json(), flush=True)
    if result.is_reading:
        # Python's own end would wait for, or break over, the thread that waits for input.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(result.code)
    return result.code


def _forecast(settings: Settings, file: str, request: RunRequest, *, as_json: bool) -> int:
    from scripts.lib.dry_run import dry_run

    columns = request.columns
    with reader_of(file, request) as reader:
        fields = request.fields
        rows = OnlyMissing(reader, settings, columns=columns, fields=fields) if request.only_missing else reader
        return dry_run(
            rows, reader.report, settings, columns, use_cache=request.use_cache, as_json=as_json, is_in_process=True,
            fields=fields, tier=request.tier,
        )  # fmt: skip


def _print_id(job_id: str) -> None:
    print(job_id, flush=True)
