"""`themes pause`: a job rests until it is resumed."""

import click

from scripts.lib.job_view import summary
from scripts.lib.terminal import say
from scripts.main import settings_from
from tasks.queue.control import pause


@click.command()
@click.argument("job", metavar="JOB")
def command(job: str) -> None:
    """Ask nothing more of JOB until `themes resume`; what is under way is awaited and kept."""
    say(summary(pause(job, settings=settings_from())))
