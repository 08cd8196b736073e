"""`themes pause`: a job rests until it is resumed."""

import sys

import click

from scripts.main import settings_from
from scripts.watch import summary
from tasks.queue.control import pause


@click.command()
@click.argument("job", metavar="JOB")
def command(job: str) -> None:
    """Ask nothing more of JOB until `themes resume`; what is under way is awaited and kept."""
    print(summary(pause(job, settings=settings_from())), file=sys.stderr)
