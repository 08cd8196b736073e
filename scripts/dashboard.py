"""`themes dashboard`: Flower in the foreground."""

import click

from scripts.lib.connections import connected
from scripts.main import settings_from
from tasks.connection import locate


@click.command(epilog="Example: themes dashboard --port 5556")
@click.option("--host", metavar="ADDRESS", help="Listen there; anything but loopback needs dashboard.basic_auth.")
@click.option("--port", type=click.IntRange(0, 65_535), metavar="PORT", help="Listen on this port.")
def command(host: str | None, port: int | None) -> None:
    """Serve the dashboard (Flower) until stopped."""
    settings = settings_from(dashboard__host=host, dashboard__port=port)
    url = locate(settings)
    broker_url = settings.celery.broker_url or url
    for each in {url, broker_url}:
        connected(settings, each, rights=True).close()
    # Late: Flower and Tornado are of no use to the other verbs.
    from tasks.queue.app import configure
    from workers.dashboard.flower import run

    run(configure(settings, broker_url), settings, url)
