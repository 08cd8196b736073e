"""What a log line looks like, and what it carries."""

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import logs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was before at the end."""
    logger = logging.getLogger()
    before, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = before
    logger.setLevel(level)


def _said(style: str, *arguments: Any, level: int = logging.INFO, **more: Any) -> str:
    stream = io.StringIO()
    logs.configure("DEBUG", style, stream)
    logging.getLogger("themes.test").log(level, *arguments, **more)
    return stream.getvalue()


def test_a_line_of_json_has_the_fields_with_their_types(root: logging.Logger) -> None:
    line = json.loads(
        _said(
            "json",
            "action=give_back job_id=%s chunks=%d seconds=%.2f cost_usd=%s 100%% of %s",
            "j1",
            3,
            1.2345,
            None,
            "it",
        )
    )
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("at"))
    assert line == {
        "level": "INFO", "logger": "themes.test", "action": "give_back", "message": "100% of it",
        "job_id": "j1", "chunks": 3, "seconds": 1.23, "cost_usd": None,
    }  # fmt: skip


def test_a_line_for_people_is_the_message_as_it_was_written(root: logging.Logger) -> None:
    said = _said("text", "action=give_back job_id=%s in the middle", "j1", level=logging.WARNING)
    assert said.endswith("WARNING themes.test action=give_back job_id=j1 in the middle\n")


def test_auto_is_json_where_nobody_looks_and_text_on_a_terminal(root: logging.Logger) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert _said("auto", "action=start").startswith("{")
    terminal = Terminal()
    logs.configure("INFO", "auto", terminal)
    logging.getLogger("themes.test").error("action=wedged")
    assert terminal.getvalue().startswith("\x1b[31m")
    assert not terminal.getvalue().startswith("{")


def test_what_a_line_is_about_is_known_where_its_message_does_not_say_it(root: logging.Logger) -> None:
    with logs.about(job_id="j1"), logs.about(destination_id="d1"):
        line = json.loads(_said("json", "action=llm_retry stage=%s", "discover.food"))
        assert "job_id=j1 destination_id=d1" in _said("text", "action=llm_retry")
    assert (line["job_id"], line["destination_id"], line["stage"]) == ("j1", "d1", "discover.food")
    assert "job_id" not in json.loads(_said("json", "action=llm_retry"))


def test_an_error_keeps_its_traceback_in_its_one_line(root: logging.Logger) -> None:
    try:
        int("two\nlines")
    except ValueError:
        said = _said("json", "action=destination_crashed %s", "x", exc_info=True)
    assert said.count("\n") == 1
    assert "ValueError: invalid literal" in json.loads(said)["exception"]


def test_the_level_is_the_one_that_was_set(root: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure("ERROR", "json", stream)
    logging.getLogger("themes.test").warning("action=redis_wait")
    assert not stream.getvalue()


def test_arguments_that_do_not_fit_their_message_lose_no_line(root: logging.Logger) -> None:
    assert "too few" in _said("json", "too few %s %s", 1)
    assert json.loads(_said("json", {"no": "text"}))["message"] == "{'no': 'text'}"
    assert (
        json.loads(_said("json", "Task %(name)s[%(id)s] ended", {"name": "n", "id": 7}))["message"] == "Task n[7] ended"
    )


@given(
    st.lists(
        st.one_of(st.text(max_size=40), st.integers(), st.floats(), st.none(), st.booleans(), st.binary(max_size=9)),
        max_size=4,
    ),
    st.sampled_from(["%s ", "x=%s ", "name=%r ", "message=%s ", "50%% "]),
)
def test_whatever_is_logged_is_one_line_of_json(values: list[Any], part: str) -> None:
    record = logging.LogRecord("n", logging.INFO, "f", 1, part * max(1, len(values)), tuple(values), None)
    line = logs.JsonLines().format(record)
    assert "\n" not in line
    assert {"at", "level", "logger", "message"} <= json.loads(line).keys()


def test_every_action_is_documented_and_every_documented_one_is_logged() -> None:
    said = {
        action
        for folder in ("config", "tasks", "workers", "scripts")
        for file in (ROOT / folder).rglob("*.py")
        for action in re.findall(r'["\s]action=(\w+)|"action": "(\w+)"', file.read_text("utf-8"))
        for action in action
        if action and file.name != "logs.py"
    }
    documented = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/reference/logs.md").read_text("utf-8"), re.MULTILINE))
    assert said == documented


def test_the_setting_reaches_a_process(tmp_path: Path) -> None:
    code = (
        "from scripts.main import settings_from; settings_from(); import logging; logging.getLogger('x').info('hello')"
    )

    def run(**env: str) -> str:
        said = subprocess.run(
            [sys.executable, "-c", code],
            env={"PATH": "", "PYTHONPATH": str(ROOT), **env},
            capture_output=True,
            text=True,
            check=True,
        )
        return said.stderr

    assert json.loads(run())["message"] == "hello"
    assert run(THEMES_LOGGING__FORMAT="text").endswith("INFO x hello\n")
    assert not run(THEMES_LOGGING__LEVEL="WARNING")
    assert run(THEMES_LOGGING__LEVEL="WARNING", THEMES_DEBUG="1")
