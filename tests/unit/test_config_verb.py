import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from config.settings import known_keys
from config.teams import TeamBudget
from config.values import Secret, SecretAddress
from scripts.config import public

ROOT = Path(__file__).parents[2]


def themes_config(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.main", "config", *arguments]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False, timeout=180)


def test_show_names_every_setting_with_its_value_and_origin(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("work:\n  lease_seconds: 20\n")
    run = themes_config("show", "--json", THEMES_CONFIG=str(file), THEMES_MODEL="some-model")
    shown = json.loads(run.stdout)
    assert list(shown) == list(known_keys())
    assert shown["work.lease_seconds"] == {"value": 20, "origin": "mine.yaml:2"}
    assert shown["llm.model"] == {"value": "some-model", "origin": "environment THEMES_MODEL"}
    assert shown["llm.prices"] == {"value": {"sandbox": {"input_usd": 0, "output_usd": 0}}, "origin": "default"}
    assert shown["state_dir"] == {"value": str(ROOT / "var"), "origin": "default"}
    assert run.returncode == 0


def test_show_is_a_table_on_a_terminal_and_plain_lines_in_a_pipe() -> None:
    piped = themes_config("show").stdout.splitlines()
    assert "work.lease_seconds\t15.0\tdefault" in piped
    assert len(piped) == len(known_keys())
    ours, theirs = pty.openpty()
    shown = subprocess.Popen([sys.executable, "-m", "scripts.main", "config", "show"], stdout=theirs)
    os.close(theirs)
    said = b""
    # Read as it comes, as a terminal does, which holds a few kilobytes; its end is an error to Linux.
    with contextlib.suppress(OSError):
        while piece := os.read(ours, 65_536):
            said += piece
    os.close(ours)
    assert shown.wait(180) == 0
    assert b"\x1b[" in said


@pytest.mark.parametrize("options", [["show"], ["show", "--json"], ["check"]])
def test_no_secret_is_shown(options: list[str]) -> None:
    secrets = {
        "OPENAI_API_KEY": "sk-hunter2",
        "REDIS_URL": "redis://:hunter2@cache:6379/1",
        "CELERY_BROKER_URL": "redis://user:a/b@hunter2#@queue:6379/0",
        "DATABASE_URL": "postgresql+asyncpg://me:hunter2@db/themes",
        "OPENAI_BASE_URL": "https://me:hunter2@llm.example/v1",
        "THEMES_DASHBOARD__BASIC_AUTH": "admin:hunter2",
        "THEMES_WEBHOOK__URL": "https://me:hunter2@hooks.example/services/hunter2",
        "THEMES_WEBHOOK__SECRET": "whsec_aHVudGVyMg==",
    }
    run = themes_config(*options, **secrets)
    assert run.returncode == 0
    assert not {"hunter2", "aHVudGVyMg"} & set(re.findall(r"hunter2|aHVudGVyMg", run.stdout + run.stderr))
    if options[0] == "show":
        assert "redis://:***@cache:6379/1" in run.stdout


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Secret("redis://localhost:6379/1"), "redis://localhost:6379/1"),
        (Secret("redis://:pw@host/1"), "redis://:***@host/1"),
        (Secret("redis://me:p@w/x@host/1"), "redis://me:***@host/1"),
        (Secret("redis://token@host"), "redis://:***@host"),
        (Secret("redis://host/1?password=pw&db=2"), "redis://host/1?password=***&db=2"),
        (Secret("unix://:pw@/run/redis.sock"), "unix://:***@/run/redis.sock"),
        (Secret("sk-123"), "***"),
        (SecretAddress("https://me:pw@hooks.example:8443/services/T0K3N?k=pw"), "https://hooks.example/***"),
        ({"research": TeamBudget(usd_per_day=5.0)}, {"research": {"usd_per_day": 5.0}}),
        ("gpt-5", "gpt-5"),
        (Path("var"), "var"),
        (None, None),
        (True, True),
    ],
)
def test_passwords_are_masked_wherever_they_stand(value: object, shown: object) -> None:
    assert public(value) == shown


def test_check_names_every_problem_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("work:\n  lease_seconds: soon\n  max_chunk_sise: 3\nlllm:\n  model: x\nredis:\n  server: other\n")
    run = themes_config("check", str(file), THEMES_WORK__MAX_DELIVERIES="0", THEMES_NOTHING="1")
    assert run.returncode == 2
    assert run.stdout == ""
    lines = run.stderr.splitlines()
    assert len(lines) == 6
    for place in (
        "bad.yaml:2",
        "bad.yaml:3",
        "bad.yaml:4",
        "bad.yaml:7",
        "THEMES_WORK__MAX_DELIVERIES",
        "THEMES_NOTHING",
    ):
        assert sum(place in line for line in lines) == 1, place


def test_check_of_good_settings_says_ok() -> None:
    run = themes_config("check")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "ok\n")


def test_check_reads_the_file_that_themes_config_names(tmp_path: Path) -> None:
    run = themes_config("check", THEMES_CONFIG=str(tmp_path / "none.yaml"))
    assert run.returncode == 2
    assert "cannot be read" in run.stderr


def test_show_of_wrong_settings_is_one_clear_line_and_exit_2() -> None:
    run = themes_config("show", THEMES_WORK__LEASE_SECONDS="soon")
    assert run.returncode == 2
    assert run.stderr == (
        "themes: work.lease_seconds: expected a number, got 'soon' (environment THEMES_WORK__LEASE_SECONDS)\n"
    )
