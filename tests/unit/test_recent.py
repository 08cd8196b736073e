"""What a job's events say of its past, for a page that is opened in its middle."""

from typing import Any

from tasks.messages import Event
from workers.dashboard.recent import LATEST, Recent


def _taken(*events: tuple[str, str, float, dict[str, Any]]) -> Recent:
    recent = Recent()
    for number, (kind, place, at, data) in enumerate(events):
        recent.take(Event(kind, "j", place or None, f"1-{number}", at, data))  # type: ignore[arg-type]
    return recent


def test_older_partial_and_failed_destinations_stay_and_each_is_there_once() -> None:
    recent = _taken(
        ("destination.failed", "nice", 1.0, {"name": "Nice"}),
        ("destination.done", "rome", 2.0, {"name": "Rome", "status": "partial"}),
        ("destination.failed", "oslo", 3.0, {"name": "Oslo"}),
        *(("destination.done", f"t{n}", 4.0, {"name": f"T{n}", "status": "ok"}) for n in range(LATEST)),
        ("destination.done", "oslo", 5.0, {"name": "Oslo", "status": "ok"}),
    )
    rows = recent.rows()
    assert [row["destination_id"] for row in rows[:2]] == ["oslo", f"t{LATEST - 1}"], "the newest first"
    assert [(row["destination_id"], row["state"]) for row in rows[LATEST:]] == [("rome", "partial"), ("nice", "failed")]
    assert rows[0]["state"] == "complete", "it was asked again"


def test_what_is_under_way_ends_with_its_outcome_with_a_pause_and_with_the_job() -> None:
    answer = ("stage.done", "rome", 1.0, {"name": "Rome", "found": ["Gelato", "Ruins", "More"]})
    assert _taken(answer, answer).running == {
        "rome": {"name": "Rome", "answers": 2, "found": ["Gelato", "Ruins", "Gelato", "Ruins"]}
    }
    done = ("destination.done", "rome", 2.0, {"status": "ok"})
    assert not _taken(answer, done).running
    assert not _taken(answer, done, answer).running, "news of its last stages may come after it"
    assert not _taken(answer, ("job.paused", "", 2.0, {})).running
    assert not _taken(answer, ("job.done", "", 2.0, {})).running


def test_a_first_rate_of_a_moment_is_left_out() -> None:
    rates = [
        ("job.progress", "", 10.0 + at, {"rate_per_second": rate}) for at, rate in ((0.1, 900), (2.5, 9), (4.5, 8))
    ]
    assert _taken(("job.started", "", 10.0, {}), *rates).points == [(10.0, 0.0), (12.5, 9.0), (14.5, 8.0)]
