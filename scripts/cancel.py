"""`themes cancel`: stop a job and keep what is done."""

import click

from scripts.lib.connections import connected
from scripts.lib.job_words import summary
from scripts.lib.terminal import say
from scripts.main import settings_from
from tasks.jobs import registry as jobs


@click.command(epilog="Example: themes cancel df5a3a")
@click.argument("job", metavar="JOB")
def command(job: str) -> None:
    """Start nothing more of JOB; destinations that are done stay, answers that were paid for stay in the cache."""
    settings = settings_from()
    compress = settings.performance_optimization.enable_result_compression
    redis = connected(settings)
    say(summary(jobs.cancel(redis, jobs.whole_id(redis, job), compress=compress)))
