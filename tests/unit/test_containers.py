"""The image and the compose file: no engine runs here, so what can be read is held against the code."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.settings import KNOWN_VARIABLES, known_keys
from scripts.main import VERBS

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "themes"}


def test_the_four_parts_are_there_and_share_one_image() -> None:
    assert {"redis", "worker", "consumer", "flower"} <= set(COMPOSE["services"])
    assert set(OURS) == set(COMPOSE["services"]) - {"redis", "prometheus", "grafana"}
    assert all(service["build"] == "." for service in OURS.values())


@pytest.mark.parametrize("name", OURS)
def test_every_service_runs_a_verb_that_exists(name: str) -> None:
    service = OURS[name]
    verb = service.get("entrypoint", ["themes", service.get("command", "").split(" ")[0]])[1]
    assert verb in VERBS


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting_and_no_value_is_a_secret(name: str) -> None:
    settings = {f"THEMES_{key.upper().replace('.', '__')}" for key in known_keys()}
    for variable, value in OURS[name]["environment"].items():
        assert variable in settings | set(KNOWN_VARIABLES)
        if re.search("KEY|AUTH", variable):
            assert value.startswith("${"), "secrets come from the caller's environment"


def test_a_container_gets_longer_to_stop_than_a_worker_takes() -> None:
    grace = known_keys()["work.shutdown_grace_seconds"][0].default
    seconds = int(OURS["worker"]["stop_grace_period"].removesuffix("s"))
    assert seconds > grace + 3


def test_redis_is_set_up_to_lose_nothing() -> None:
    command = COMPOSE["services"]["redis"]["command"]
    assert "--appendonly yes" in command
    assert "volatile-lru" in command


def test_the_dashboard_asks_for_a_password_and_stays_on_this_machine() -> None:
    flower = OURS["flower"]
    assert ":?" in flower["environment"]["THEMES_DASHBOARD__BASIC_AUTH"]
    assert all(port.startswith("127.0.0.1:") for port in flower["ports"])


def test_what_the_image_copies_is_there() -> None:
    text = (ROOT / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert "USER themes" in text
    assert "--require-hashes" in text
