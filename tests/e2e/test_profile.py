"""A job's profile, made by real processes."""

import sys
import time

import pytest
from redis import Redis

from tests.e2e.conftest import Engine, until
from workers.observe.parts import read_job_picture
from workers.observe.picture import HOPS, WHOLES, JobPicture
from workers.observe.reporter import read_metrics, read_series

#: Spans that need something out of the ordinary: a refusal, or an equal prompt in flight.
RARE = {"llm.backoff", "flight.wait"}


def _whole(redis: Redis, job_id: str, calls: int) -> JobPicture:
    """The picture once the last parts have come."""

    def look() -> JobPicture | None:
        picture = read_job_picture(redis, job_id)
        results = picture.sums.get("results", 0)
        return picture if picture.sums.get("llm.requests", 0) >= calls and results >= 40 else None

    return until("the parts of all processes", look, 15)


def test_a_job_of_two_workers_gives_a_picture_of_every_hop(stack: Engine) -> None:
    for name in ("one", "two"):
        stack.themes(name, "worker", "--name", name, "--concurrency", "4")
    source = stack.folder / "many.csv"
    source.write_text("name\n" + "".join(f"Place {number}\n" for number in range(40)))
    began = time.time()
    said = stack.run("enqueue", str(source), "--wait")
    assert said.returncode == 0, said.stderr
    job_id = said.stdout.strip().splitlines()[0]
    status = stack.status(job_id)
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        picture = _whole(redis, job_id, status["llm_calls"])
        metrics = read_metrics(redis)
        series = read_series(redis, 120)
    if "-s" in sys.argv:
        import pprint

        for part in picture.parts:
            print(part.role, part.name, {k: round(v, 3) for k, v in part.sums.items()}, part.peaks, part.facts)
        for k, v in picture.spans.items():
            print(k, v.summary())
        pprint.pprint(picture.slowest[:2])
        pprint.pprint(picture.parts[-1].inside)
        pprint.pprint(metrics.counters)
        pprint.pprint([s for s in series if s.calls or s.rows])
    assert {*HOPS, *WHOLES} - RARE <= set(picture.spans)
