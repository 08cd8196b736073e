"""What the benchmark beside peers stands on: its server counts, contestants answer, who cannot is left out."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import environments
from tests.benchmarks.full_prompts import body_of, prompts_about
from tests.benchmarks.peers import contest
from tests.benchmarks.peers.contest import BARE, OURS, CannotError, Contestant, Ring, may_fail
from tests.benchmarks.peers.driver import PLACE, calls
from tests.benchmarks.whole import light_server


@pytest.fixture
def ring(redis_url: str, tmp_path: Path) -> Iterator[Ring]:
    with light_server(0.0) as (_, url):
        yield Ring(url, redis_url, tmp_path)


def _bodies() -> list[dict[str, Any]]:
    return [json.loads(body_of(prompt)) for prompt in prompts_about(PLACE)]


def test_calls_are_of_sixteen_prompts_each_with_its_number() -> None:
    made = list(calls(_bodies(), 5, 32))
    assert [call.number for call in made] == list(range(5, 37))
    assert len({call.name for call in made}) == 16
    assert all(str(call.number) in json.dumps(call.messages) for call in made)
    assert str(PLACE) not in json.dumps([call.messages for call in made])
    assert len({json.dumps(call) for call in calls(_bodies(), 5, 32, same=True)}) == 1


def test_both_of_ours_answer_every_call(ring: Ring) -> None:
    with ring.opened([BARE, OURS]) as warm:
        assert len(warm) == 2
        for running in warm:
            before = ring.posted()
            figures = running.carry_out(first=0, count=32)
            assert (figures["answered"], ring.posted() - before) == (32, 32)
            assert figures["cpu"] > 0


def test_equal_prompts_of_two_processes_are_one_call_and_a_third_has_it_from_redis(ring: Ring) -> None:
    with ring.opened([OURS, OURS], cached=True) as warm:
        before = ring.posted()
        for running in warm:
            running.begin(first=7, count=64, same=True)
        assert [running.figures()["answered"] for running in warm] == [64, 64]
        assert ring.posted() - before == 1
    with ring.opened([OURS], cached=True) as warm:
        before = ring.posted()
        (later,) = warm
        assert later.carry_out(first=7, count=1)["answered"] == 1
        assert ring.posted() == before


def test_a_limit_holds_for_all_processes(ring: Ring) -> None:
    with ring.opened([OURS, OURS], per_minute=600) as warm:
        before, began = ring.posted(), time.monotonic()
        for at, running in enumerate(warm):
            running.begin(first=at * 1_000)
        while (came := ring.posted() - before) < 25:
            assert time.monotonic() < began + 60
            time.sleep(0.01)
        # Ten a second, and a second's worth at once.
        assert came <= 10 * (time.monotonic() - began) + 11
        for running in warm:
            running.kill()


def test_a_peer_that_cannot_is_said_and_ours_fails(ring: Ring, capsys: pytest.CaptureFixture[str]) -> None:
    peer, ours = Contestant("nobody", validates=False), Contestant("nobody", validates=False, is_ours=True)
    peer.__dict__["python"] = ours.python  # its environment is there, its file is not
    with ring.opened([peer]) as warm:
        assert not warm
    assert "nobody: cannot: ModuleNotFoundError" in capsys.readouterr().out
    with pytest.raises(CannotError), may_fail(ours), ring.opened([ours]):
        pass


def test_a_peer_that_cannot_be_installed_is_said_and_not_tried_again(
    ring: Ring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nobody.txt").write_text("./is-not-there\n")
    monkeypatch.setattr(contest, "_HERE", tmp_path)
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    for _ in range(2):
        with ring.opened([Contestant("nobody", validates=False)]) as warm:
            assert not warm
    said = capsys.readouterr().out
    assert (said.count("making the environment"), said.count("nobody: cannot: nobody.txt cannot be installed")) == (
        1,
        2,
    )


def test_the_server_knows_a_prompt_however_its_json_is_written(ring: Ring) -> None:
    body = _bodies()[0]
    schema = body["response_format"]["json_schema"]
    body["response_format"]["json_schema"] = {"strict": True, "schema": {}, "name": schema["name"]}
    request = urllib.request.Request(f"{ring.server}/chat/completions", json.dumps(body, indent=1).encode())  # noqa: S310  # our own server
    with urllib.request.urlopen(request) as answer:  # noqa: S310  # our own server
        content = json.loads(json.load(answer)["choices"][0]["message"]["content"])
    assert len(content) == 25
