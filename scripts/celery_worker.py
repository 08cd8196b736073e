"""The Celery process of `themes worker`, as `celery -A workers.app worker` runs it.

Celery's own command line would import all of its commands, Flower's too, and look for the app in the current directory.
"""

import sys

from scripts.main import log_level


def main() -> None:
    """Work until stopped, under the name in `sys.argv`."""
    # Late: it reads the settings.
    from workers.app import SETTINGS, app

    worker = app.Worker(
        hostname=sys.argv[1],
        loglevel=log_level(SETTINGS),
        task_events=True,
        # Mingling would cost a second at the start, and gossip serves nothing.
        without_mingle=True,
        without_gossip=True,
    )
    worker.start()
    sys.exit(worker.exitcode)


if __name__ == "__main__":
    main()
