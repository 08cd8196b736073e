"""`themes pause`: a job rests until it is resumed."""

import click

from scripts.lib.connections import connected
from scripts.lib.job_words import summary
from scripts.lib.terminal import say
from scripts.main import settings_from
from tasks.jobs.registry import whole_id
from tasks.queue.control import pause


@click.command(epilog="Example: themes pause df5a3a")
@click.argument("job", metavar="JOB")
def command(job: str) -> None:
    """Ask nothing more of JOB until `themes resume`; what is under way is awaited and kept."""
    settings = settings_from()
    redis = connected(settings)
    say(summary(pause(whole_id(redis, job), settings=settings, redis=redis)))
