"""`themes watch`: a job's progress while it runs, ending with the job."""

import sys

import click
import msgspec

from scripts.lib.connections import connected
from scripts.lib.follow import follow_to_end, goes_on, reliable_events
from scripts.lib.job_words import exit_code
from scripts.lib.partial import fail_on_partial
from scripts.main import settings_from
from tasks.errors import JobNotFoundError
from tasks.jobs import registry as jobs
from tasks.jobs.events import flat


@click.command(epilog="Example: themes watch df5a3a")
@click.argument("job", metavar="JOB", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print every event as one line of JSON.")
@click.option("--from", "after", metavar="ID", default="0-0", help="Only events after this id.")
@fail_on_partial
def command(job: str | None, after: str, *, as_json: bool, is_partial_failure: bool) -> int:
    """Watch JOB (by default the newest) until it ends or stops at its budget; exit 1 when any destination failed."""
    settings = settings_from()
    redis = connected(settings)
    job_id = jobs.whole_id(redis, job) if job else jobs.latest(redis)
    if job_id is None:
        raise JobNotFoundError("there is no job yet: `themes enqueue FILE` makes one")
    if not as_json:
        return follow_to_end(redis, job_id, settings, after=after, is_partial_failure=is_partial_failure)
    try:
        for event in reliable_events(redis, job_id, settings, after):
            if event is not None:
                sys.stdout.write(msgspec.json.encode(flat(event)).decode() + "\n")
                sys.stdout.flush()
    except KeyboardInterrupt:
        return goes_on(job_id)
    return exit_code(jobs.status(redis, job_id), is_partial_failure=is_partial_failure)
