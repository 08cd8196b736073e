"""`themes resume`: a job that was paused, or stopped at its budget, goes on."""

import sys

import click

from scripts.main import settings_from
from scripts.watch import summary
from tasks.queue.control import resume


@click.command()
@click.argument("job", metavar="JOB")
@click.option("--budget", type=float, metavar="USD", help="What the job may cost from now on, all in all.")
def command(job: str, budget: float | None) -> None:
    """Let JOB, which is paused or stopped at its budget, go on; what is done stays, nothing is paid twice."""
    print(summary(resume(job, budget_usd=budget, settings=settings_from())), file=sys.stderr)
