"""`themes worker`: one worker process, kept alive."""

import os
import secrets
import socket

import click

from scripts.lib.connections import connected
from scripts.lib.forks import WORKER, preload
from scripts.lib.supervisor import Supervisor, refuse_taken
from scripts.main import settings_from
from workers.llm.endpoints.registry import endpoints
from workers.pipeline.graph import Graph
from workers.pipeline.prompts import stages_of
from workers.process.file_descriptors import ensure_descriptors, worker_descriptors


@click.command(epilog="Example: themes worker --name w1 --concurrency 16")
@click.option("--name", metavar="NAME", help="The worker's name; several on one machine need different ones.")
@click.option("--concurrency", type=int, metavar="N", help="Destinations in work at once (worker_pool_size).")
def command(name: str | None, concurrency: int | None) -> int:
    """Run one worker process in the foreground, and start it again when it dies."""
    settings = settings_from(performance_optimization__worker_pool_size=concurrency)
    if concurrency is not None:
        os.environ["THEMES_PERFORMANCE_OPTIMIZATION__WORKER_POOL_SIZE"] = str(concurrency)
    redis = connected(settings, rights=True)
    broker = connected(settings, settings.celery.broker_url, rights=True) if settings.celery.broker_url else redis
    # What is raised here the child inherits.
    ensure_descriptors("worker", worker_descriptors(settings))
    # What cannot work is said here, in one line, and not five times by a dying child.
    endpoints(settings.llm)
    Graph(stages_of(settings))
    # The process id alone is the same in many containers, and so may the host's name be.
    full_name = f"{name or f'worker-{os.getpid()}-{secrets.token_hex(2)}'}@{socket.gethostname()}"
    refuse_taken(redis, full_name)
    preload(WORKER)
    return Supervisor(settings, redis, broker, full_name).run()
