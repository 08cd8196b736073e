"""`themes enqueue`: a file of destinations becomes a job."""

import contextlib
from pathlib import Path
from typing import Any

import click
from redis import Redis, RedisError

from scripts.lib.connections import connected
from scripts.lib.fields import fields_option, wanted_fields
from scripts.lib.llm_probe import LlmProbe
from scripts.lib.partial import fail_on_partial
from scripts.lib.reading import BadRows, reading_options, show, show_start, summary
from scripts.lib.terminal import say, say_unpriced
from scripts.lib.tiers import tier_options
from scripts.main import FILE, settings_from
from tasks import keys
from tasks.connection import text_of
from tasks.errors import InputError
from tasks.inputs.reader import Reader
from tasks.jobs.budget import check, unpriced
from tasks.jobs.teams import check_team
from tasks.queue.producer import enqueue
from tasks.texts import clean_line, count


def _team(_: click.Context, __: click.Parameter, name: str) -> str:
    if name:
        check_team(name, settings_from())
    return name


@click.command(epilog="Example: themes enqueue cities.csv --budget 5 --wait")
@click.argument("file", type=FILE, metavar="FILE|-")
@click.option("--name", metavar="NAME", help="The job's name in lists; by default the file's.")
@reading_options
@click.option("--priority", type=click.IntRange(0, 9), default=5, show_default=True, help="9 is served first.")
@click.option("--only-missing", is_flag=True, help="Leave out what has a complete profile by today's prompts.")
@click.option("--no-cache", is_flag=True, help="Ask the LLM again even where the answer is known.")
@click.option("--budget", type=float, metavar="USD", help="Stop before the job costs more; `themes resume` goes on.")
@click.option(
    "--team", metavar="NAME", default="", callback=_team, help="Pay from this team's budget too (teams.budgets)."
)
@fields_option
@tier_options
@click.option("--force", is_flag=True, help="Enqueue without asking first whether the LLM takes key and model.")
@click.option("--dry-run", is_flag=True, help="Enqueue nothing; forecast calls, tokens, cost and time.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: the forecast as one JSON object.")
@click.option("--wait", is_flag=True, help="Watch the job and end with it; exit 1 when any destination failed.")
@fail_on_partial
def command(
    *, file: str, name: str | None, columns: tuple[str, ...], priority: int, budget: float | None, team: str,
    only_missing: bool, no_cache: bool, fields: str | None, tier: str, deadline_at: float | None,
    force: bool, dry_run: bool, as_json: bool, wait: bool, is_partial_failure: bool, **reading: Any,
) -> int:  # fmt: skip
    """Enqueue the destinations in FILE (CSV, JSONL, JSON, text; - is standard input) and print the job's id."""
    settings = settings_from()
    if budget is not None:
        check(budget, settings)
    wanted = wanted_fields(settings, fields)
    reader = Reader(file, columns=columns, on_bad_row=BadRows(), on_start=show_start, **reading)
    missing = None
    if only_missing:
        # Late: otherwise `enqueue` needs neither prompts nor a database.
        from scripts.lib.only_missing import OnlyMissing

        missing = OnlyMissing(reader, settings, columns=columns, fields=wanted)
    rows = reader if missing is None else missing
    if dry_run:
        # Late: the forecast makes prompts, which `enqueue` itself never does.
        from scripts.lib.dry_run import dry_run as forecast

        with reader:
            return forecast(
                rows,
                reader.report,
                settings,
                columns,
                use_cache=not no_cache,
                as_json=as_json,
                fields=wanted,
                tier=tier,
            )
    if as_json:
        raise click.UsageError("--json goes with --dry-run; `themes status JOB --json` tells of a job")
    # Late: psutil is of no use to the forecast.
    from workers.observe.production import Production

    without_price = unpriced(settings)
    # Before the file is read: a million rows are not read to find that Redis is away.
    redis = connected(settings)
    probe = None if force else LlmProbe(settings, redis)
    production = Production(settings)
    with reader:
        if probe is not None:
            probe.refuse()
        try:
            job = enqueue(
                production.reading(rows), name=name or ("standard input" if file == "-" else Path(file).name),
                priority=priority, use_cache=not no_cache, budget_usd=budget, columns=columns,
                id_column=reader.id_column, are_distinct=True, fields=wanted,
                tier=tier, deadline_at=deadline_at, team=team, settings=settings, redis=redis,
            )  # fmt: skip
        except InputError:
            if missing is None or not missing.skipped:
                raise
            say(f"nothing to enqueue: all {missing.skipped} have a current profile")
            return 0
    report = reader.report
    print(job.job_id, flush=True)
    with contextlib.suppress(RedisError):  # the job stands; what it took to enqueue it is not worth a failure
        production.report(redis, job.job_id)
    left_out = f", {missing.skipped} with a current profile" if missing else ""
    show(report)
    say(f"enqueued {count(job.total, 'destination')} ({summary(report)}{left_out})")
    say_unpriced(without_price)
    if address := _dashboard(redis):
        say(f"see {address}/jobs/{job.job_id}")
    if not wait:
        return 0
    # Late: only who waits looks on.
    from scripts.lib.follow import follow_to_end

    return follow_to_end(redis, job.job_id, settings, is_partial_failure=is_partial_failure)


def _dashboard(redis: Redis) -> str:
    """The address of a dashboard that runs; empty where there is none."""
    with contextlib.suppress(RedisError):  # as above
        return clean_line(text_of(redis.get(keys.DASHBOARD) or b""))
    return ""
