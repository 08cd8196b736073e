"""`themes resume`: a job that was paused, or stopped at its budget, goes on."""

import click

from scripts.lib.connections import connected
from scripts.lib.job_words import summary
from scripts.lib.terminal import say
from scripts.main import settings_from
from tasks.jobs.registry import whole_id
from tasks.queue.control import resume


@click.command(epilog="Example: themes resume df5a3a --budget 10")
@click.argument("job", metavar="JOB")
@click.option("--budget", type=float, metavar="USD", help="What the job may cost from now on, all in all.")
def command(job: str, budget: float | None) -> None:
    """Let JOB, which is paused or stopped at its budget, go on; what is done stays, nothing is paid twice."""
    settings = settings_from()
    redis = connected(settings)
    say(summary(resume(whole_id(redis, job), budget_usd=budget, settings=settings, redis=redis)))
