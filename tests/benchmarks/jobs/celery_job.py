"""Celery: a task a destination, prefork, requests, results in Redis; messages are acknowledged early, its default.

`celery -A tests.benchmarks.jobs.celery_job worker`; `python -m tests.benchmarks.jobs.celery_job NAMES` enqueues.
"""

import os
import sys

from celery import Celery

from tests.benchmarks.jobs.destination import names_of
from tests.benchmarks.jobs.with_requests import work

app = Celery("jobs", broker=os.environ["JOB_REDIS"], backend=os.environ["JOB_REDIS"])


@app.task(name="destination")  # type: ignore[untyped-decorator]
def destination(name: str) -> str:
    work(name)
    return name


if __name__ == "__main__":
    for one in names_of(sys.argv[1]):
        destination.delay(one)
