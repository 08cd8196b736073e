"""What following a job shows, where its events are on a stream."""

import msgspec
import pytest
from redis import Redis

from config.settings import load
from scripts.lib.follow import follow_to_end
from tasks import keys
from tasks.jobs import registry as jobs
from tasks.messages import Event, JobOptions

EVENTS = 2_000


def test_the_end_of_a_job_is_shown_at_once_and_not_as_it_went(
    redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    job_id = jobs.create(redis, name="cities", options=JobOptions(), compress=False)
    fields = {
        "state": "done",
        "total": EVENTS,
        "done": EVENTS - 2,
        "failed": 2,
        "started_at": 1.0,
        "finished_at": 730.0,
    }
    redis.hset(keys.job(job_id), mapping=fields)
    with redis.pipeline() as pipeline:
        for number in range(EVENTS):
            data = {"name": f"Town {number}", "country": "Utopia", "message": "400: no", "top_themes": ["Sea"]}
            kind = "destination.failed" if number in {7, 8} else "destination.done"
            pipeline.xadd(keys.events(job_id), {"e": msgspec.json.encode(Event(kind, job_id, data=data))})
        pipeline.xadd(keys.events(job_id), {"e": msgspec.json.encode(Event("job.done", job_id))})
        pipeline.expire(keys.events(job_id), 600)
        pipeline.execute()
    assert follow_to_end(redis, job_id, load(env={"REDIS_URL": redis_url})) == 1
    said = capsys.readouterr().err
    assert said.count("finished") == 1
    assert f"{EVENTS:,}/{EVENTS:,} finished" in said
    assert "took 12m 09s" in said
    assert said.count("Utopia") == 5, "those that ended last"
    assert f"2 failed: 400: no: see `themes failures {job_id}`" in said
