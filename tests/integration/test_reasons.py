"""Why destinations failed or are partial, in few lines, on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from scripts.lib.partial import lines_of
from scripts.lib.wanted import Wanted
from tasks.messages import Destination, Failure, Missing, Result, StageRecord, Usage
from tests.support.stored import announced, failed, holding, places
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.queries import reasons
from workers.results.queries.reasons import failure_reasons, kind, partial_reasons, split, stages_of_partial
from workers.results.queries.status import status_of


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[AsyncDatabaseManager]:
    async with AsyncDatabaseManager(database_url, pool_size=3) as manager:
        yield manager


def _failed(destination: Destination, stage: str, error_class: str, message: str) -> Result:
    return msgspec.structs.replace(failed(destination), failure=Failure(stage, error_class, message, 1))


def _partial(destination: Destination, *missing: tuple[str, str]) -> Result:
    stages = [StageRecord(f"s{n}", "ok", "1", "m", "called", Usage(), 1.0) for n in range(16)]
    lacks = [Missing(stage, field, reason) for stage, reason in missing for field in ("a", "b")]
    return holding(destination, status="partial", missing=lacks, stages=stages)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("400: context of 2,048 tokens, 2,311 were sent", "400: context of 2,048 tokens, 40,007 were sent"),
        ("request 7f71a17d19155398a54a refused", "request 0000a17d19155398a54b refused"),
        ("waited 0.5 s until 12:30:01", "waited 17 s until 09:00:59"),
        ("themes/3/name: too long", "themes/12/name: too long"),
    ],
)
def test_messages_that_differ_in_numbers_alone_are_one_kind(first: str, second: str) -> None:
    assert kind(first) == kind(second)
    assert kind("cut off") != kind("refused")


def test_a_reason_is_split_into_class_and_message() -> None:
    assert split("BadRequestError: 400: no") == ("BadRequestError", "400: no")
    assert split("cut off") == ("", "cut off")
    assert split("E: \nyes") == ("E", "\nyes")
    assert split("nobody: knows") == ("", "nobody: knows")


async def test_six_hundred_failures_are_one_line_a_kind(store: AsyncDatabaseManager) -> None:
    towns = places(60)
    results = [_failed(town, "food", "BadRequestError", f"401: call {n}") for n, town in enumerate(towns[:50])]
    results += [_failed(town, "art", "BadRequestError", f"401: call {n}") for n, town in enumerate(towns[50:58])]
    results += [_failed(towns[58], "food", "EndpointDownError", "hung up"), _partial(towns[59], ("x", "E: no"))]
    await store.apply([*announced(*towns), *results])
    found = await failure_reasons(store, "j")
    assert [(one.destinations, one.error_class, list(one.stages)) for one in found] == [
        (50, "BadRequestError", ["food"]), (8, "BadRequestError", ["art"]), (1, "EndpointDownError", ["food"]),
    ]  # fmt: skip
    assert found[0].message.startswith("401: call ")
    assert found[2].places == ["Town 58, Utopia"]
    assert len(found[0].places) == reasons.MAX_PLACES


async def test_what_profiles_lack_is_grouped_over_stages_or_by_stage(store: AsyncDatabaseManager) -> None:
    towns = places(4)
    small = [(f"s{n}", f"BadRequestError: context of {n} tokens too small") for n in range(11)]
    await store.apply([*announced(*towns), *(_partial(town, *small) for town in towns[:3]),
                       _partial(towns[3], ("s1", "TruncatedAnswerError: cut off"), small[0])])  # fmt: skip
    (first, second) = await partial_reasons(store, "j")
    assert (first.destinations, first.error_class, len(first.stages)) == (4, "BadRequestError", 11)
    assert (second.destinations, second.error_class, second.message) == (1, "TruncatedAnswerError", "cut off")
    assert len(await partial_reasons(store, "j", by_stage=True)) == 12
    assert await stages_of_partial(store, "j") == 16
    assert await stages_of_partial(store, "k") == 0
    async with store.reading() as connection:
        gaps: Any = await connection.exec_driver_sql(
            "SELECT error_class, profiles FROM gaps WHERE stage IN ('s0', 's1') AND field = 'a' ORDER BY profiles DESC"
        )
        assert [tuple(row) for row in gaps] == [
            ("BadRequestError", 4), ("BadRequestError", 3), ("TruncatedAnswerError", 1),
        ]  # fmt: skip


async def test_destinations_that_lack_different_stages_are_not_said_to_lack_all(tmp_path: Path) -> None:
    towns = places(4)
    lacks = [[("s0", "E: no"), ("s1", "E: no")], [("s1", "E: no")], [("s2", "E: no")], [("s3", "F: cut off")]]
    async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{tmp_path / 'themes.db'}", pool_size=2) as manager:
        results = [_partial(town, *lack) for town, lack in zip(towns, lacks, strict=True)]
        await manager.apply([*announced(*towns), *results])
        row = await manager.job("j")
        assert row is not None
        lines = await lines_of(manager, status_of(row), again="again")
    assert lines[1:3] == ["  2 or more lack some of 3 of 16 stages (s0, s1, s2): E: no", "  1 lack s3: F: cut off"]


async def test_more_kinds_than_can_be_held_are_counted_together(
    store: AsyncDatabaseManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reasons, "MAX_KINDS", 2)
    towns = places(5)
    await store.apply([*announced(*towns), *(
        _failed(town, "food", "E", "ab"[n % 2] * (n + 1)) for n, town in enumerate(towns)
    )])  # fmt: skip
    found = await failure_reasons(store, "j")
    assert [one.destinations for one in found] == [3, 1, 1]
    assert found[0].message == reasons.OTHERS


async def test_a_retry_asks_by_class_and_stage_without_case(
    store: AsyncDatabaseManager, capsys: pytest.CaptureFixture[str]
) -> None:
    towns = places(3)
    await store.apply(
        [
            *announced(*towns),
            _failed(towns[0], "discover.food", "BadRequestError", "no"),
            _failed(towns[1], "discover.luxury", "EndpointDownError", "away"),
            _partial(towns[2], ("analyse.price", "EndpointDownError: away")),
        ]
    )
    assert await Wanted("badrequesterror").of(store, "j") == [towns[0]]
    assert await Wanted("ENDPOINTDOWNERROR", partial=True).of(store, "j") == [towns[1], towns[2]]
    assert await Wanted(stages=("Analyse.Price", "DISCOVER.FOOD"), partial=True).of(store, "j") == [towns[0], towns[2]]
    assert capsys.readouterr().err == ""
    assert await Wanted("EndpointDown", partial=True).of(store, "j") == []
    assert capsys.readouterr().err == (
        "themes: --only EndpointDown: nothing has it; did you mean EndpointDownError? (known: BadRequestError, "
        "EndpointDownError)\n"
    )
