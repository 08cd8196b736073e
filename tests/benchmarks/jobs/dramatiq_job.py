"""dramatiq: an actor a destination, its Redis broker, processes with threads, requests; no result backend, its default.

`dramatiq tests.benchmarks.jobs.dramatiq_job`; `python -m tests.benchmarks.jobs.dramatiq_job NAMES` enqueues.
"""

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from tests.benchmarks.jobs.destination import names_of
from tests.benchmarks.jobs.with_requests import work

dramatiq.set_broker(RedisBroker(url=os.environ["JOB_REDIS"]))


@dramatiq.actor
def destination(name: str) -> None:
    work(name)


if __name__ == "__main__":
    for one in names_of(sys.argv[1]):
        destination.send(one)
