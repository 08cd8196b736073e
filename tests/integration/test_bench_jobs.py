"""What stands beside our jobs does the same work, and its failures are its own."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from redis import Redis

from scripts.lib.processes import spawn
from tasks.messages import Destination
from tests.benchmarks import figures
from tests.benchmarks.costs import Costs
from tests.benchmarks.full_answers import THEMES
from tests.benchmarks.jobs import contestant, destination
from tests.benchmarks.test_jobs import _with_repeats
from tests.benchmarks.whole import kill, light_server, posts
from tests.e2e.conftest import until

PINS = sorted(Path(contestant.__file__).parent.glob("*.txt"))


def test_a_repeated_name_is_the_same_destination_in_another_spelling() -> None:
    names = [f"Town {number}" for number in range(10)]
    repeated = _with_repeats(names, 30)
    assert len(set(repeated)) == len(repeated) == 10
    assert {Destination.of(name).id for name in repeated} == {Destination.of(name).id for name in names[:7]}


def test_every_contestant_has_pins_and_nothing_but_pins() -> None:
    assert {path.stem for path in PINS} == {peer.name for peer in contestant.PEERS}
    for path in PINS:
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in path.read_text().splitlines()), path


def test_a_script_that_was_killed_goes_on_with_what_has_no_row(tmp_path: Path) -> None:
    names, count = tmp_path / "names.txt", 6
    names.write_text("".join(f"Town {number}\n" for number in range(count)))
    with light_server(0.02) as (_, url):
        env = os.environ | {
            "OPENAI_BASE_URL": url,
            "JOB_BODIES": str(contestant._bodies(tmp_path)),
            "JOB_DATABASE": str(tmp_path / "rows.db"),
            "JOB_IN_FLIGHT": "1",
        }
        command = [sys.executable, "-m", "tests.benchmarks.jobs.asyncio_job", str(names)]
        first = spawn(command, env=env, log=tmp_path / "log")
        until("two of its rows", lambda: len(_rows(tmp_path)) >= 2 or first.poll() is not None)
        kill([first])
        known = len(_rows(tmp_path))
        asked = posts(url)
        subprocess.run(command, env=env, check=True)
        assert posts(url) - asked == 16 * (count - known)
    rows = _rows(tmp_path)
    assert [name for name, _ in rows] == names.read_text().split("\n")[:-1]
    for _, payload in rows:
        profile = json.loads(payload)
        assert len(profile["themes"]) == THEMES
        assert all("rationale" in theme and "seasonality" in theme for theme in profile["themes"])


def _rows(folder: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(folder / "rows.db", timeout=60)) as database:
        if not database.execute("SELECT 1 FROM sqlite_master").fetchall():
            return []
        return database.execute("SELECT name, payload FROM profiles ORDER BY ended").fetchall()


def test_the_name_takes_its_place_in_all_sixteen_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_BODIES", str(contestant._bodies(tmp_path)))
    destination._bodies.cache_clear()
    bodies = list(destination.requests_about("Town of towers"))
    assert len(bodies) == 16
    assert all(b"Town of towers" in body and str(destination.PLACE).encode() not in body for body in bodies)


def test_a_peer_that_fails_has_a_reason_and_no_figure(capsys: pytest.CaptureFixture[str]) -> None:
    runs = {"a peer": [1.0]}
    with contestant.forgiven("a peer", lambda: runs.pop("a peer")):
        raise RuntimeError("its server is away")
    assert not runs
    assert capsys.readouterr().out == "a peer: no figure: its server is away\n"


def test_costs_leave_out_the_turn_that_warms(redis: Redis) -> None:
    costs = Costs(redis, 10)
    for _ in range(3):
        for way in ("ours", "bare"):
            with costs.of(way):
                redis.ping()
    with figures.telling("a test"):
        costs.tell("a case", "ping")
    told = figures.told.pop("a test")
    assert [one.title for one in told][::3] == ["pings, ours", "pings, bare", "rate, ours / bare"]
    assert {one.runs for one in told} == {2}
