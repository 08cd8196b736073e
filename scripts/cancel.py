"""`themes cancel`: stop a job and keep what is done."""

import sys

import click

from scripts.main import settings_from
from scripts.watch import summary
from tasks.connection import check_server, connect, locate
from tasks.jobs import registry as jobs


@click.command()
@click.argument("job", metavar="JOB")
def command(job: str) -> None:
    """Start nothing more of JOB; destinations that are done stay, answers that were paid for stay in the cache."""
    settings = settings_from()
    redis = connect(locate(settings), socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    check_server(redis)
    compress = settings.performance_optimization.enable_result_compression
    print(summary(jobs.cancel(redis, job, compress=compress)), file=sys.stderr)
