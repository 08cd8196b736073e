"""The image and the compose file: no engine runs here, so what can be read is held against the code."""

import fnmatch
import json
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import jsonschema_rs
import pytest

from config.settings import KNOWN_VARIABLES, OTHER_VARIABLES, known_keys
from scripts.main import VERBS, cli
from tests.support.compose import COMPOSE, ROOT, dotenv, read, variables

SCHEMAS = ROOT / "tests/support/schemas"
EXAMPLE = dotenv((ROOT / ".env.example").read_text())
FILE = read(EXAMPLE | {"REDIS_PASSWORD": "pw", "THEMES_DASHBOARD__BASIC_AUTH": "me:pw"})
SERVICES: dict[str, Any] = FILE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("themes:")}
THEIRS = {name: service for name, service in SERVICES.items() if name not in OURS}
#: Names of settings as variables.
SETTINGS = {f"THEMES_{key.upper().replace('.', '__')}" for key in known_keys()} | set(KNOWN_VARIABLES) | OTHER_VARIABLES


def _flaws(file: dict[str, Any]) -> list[str]:
    validator = jsonschema_rs.validator_for(json.loads((SCHEMAS / "compose-spec.json").read_text()))
    return [f"{list(flaw.instance_path)}: {flaw.message}" for flaw in validator.iter_errors(file)]


def test_the_file_is_one_by_the_compose_specification() -> None:
    assert _flaws(FILE) == []
    assert _flaws(FILE | {"services": {"redis": SERVICES["redis"] | {"helthcheck": {}}}})


def test_the_parts_are_there_and_ours_share_one_image() -> None:
    assert {"redis", "worker", "consumer", "flower", "sandbox", "themes"} == {*OURS, "redis"}
    assert {"redis", "ollama", "postgresql", "prometheus", "grafana"} == set(THEIRS)
    assert {(service["build"], service["image"]) for service in OURS.values()} == {
        (".", f"themes:{version('smart-destination-themes')}")
    }
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", [])}
    assert profiles == {"tools", "sandbox", "ollama", "postgresql", "monitoring"}


def test_the_example_names_every_variable_and_no_other() -> None:
    text = (ROOT / ".env.example").read_text()
    assert variables(COMPOSE.read_text()) == set(EXAMPLE) - {"COMPOSE_PROFILES"}
    assert set(EXAMPLE["COMPOSE_PROFILES"].split(",")) <= {"sandbox", "ollama", "postgresql", "monitoring"}
    for secret in ("REDIS_PASSWORD", "THEMES_DASHBOARD__BASIC_AUTH", "GRAFANA_PASSWORD", "POSTGRES_PASSWORD"):
        assert EXAMPLE[secret] == "", f"{secret} has a default in {text}"


@pytest.mark.parametrize("missing", ["REDIS_PASSWORD", "THEMES_DASHBOARD__BASIC_AUTH"])
def test_a_password_that_is_not_set_starts_nothing(missing: str) -> None:
    env = {"REDIS_PASSWORD": "pw", "THEMES_DASHBOARD__BASIC_AUTH": "me:pw"}
    del env[missing]
    with pytest.raises(ValueError, match=f"set {missing}"):
        read(env)


@pytest.mark.parametrize("name", OURS)
def test_every_service_of_ours_runs_a_verb_that_exists(name: str) -> None:
    assert "entrypoint" not in OURS[name]
    command = OURS[name].get("command", ["status"])
    assert command[0] in VERBS
    test = OURS[name].get("healthcheck", {}).get("test", [])
    if test[1:2] == ["themes"]:
        health = cli.get_command(click.Context(cli), test[2])
        assert health is not None
        with health.make_context("health", list(test[3:])):
            pass
    assert test or name == "themes"


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(name: str) -> None:
    assert set(OURS[name]["environment"]) <= SETTINGS


def test_the_key_of_the_llm_is_in_the_workers_alone_and_out_of_a_file() -> None:
    assert [name for name, service in SERVICES.items() if "secrets" in service] == ["worker"]
    assert OURS["worker"]["environment"]["THEMES_LLM__API_KEY_FILE"] == "/run/secrets/llm_api_key"
    assert "OPENAI_API_KEY" not in COMPOSE.read_text()
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {".env", "secrets/"} <= set(ignored)
    assert FILE["secrets"]["llm_api_key"] == {"file": "./secrets/llm_api_key"}


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_writes_where_it_is_said_and_has_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "/tmp" in service["tmpfs"]  # noqa: S108
    mounts = [volume.split(":") for volume in service.get("volumes", [])]
    for source, _, *options in mounts:
        is_file = source.startswith(".")
        assert (options == ["ro"] and (ROOT / source).exists()) if is_file else source in FILE["volumes"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert service["logging"]["options"]["max-size"]
    assert "healthcheck" in service or service["restart"] == "no"


@pytest.mark.parametrize("name", THEIRS)
def test_images_of_others_are_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+(\.\d+)?(-alpine)?(@sha256:[0-9a-f]{64})?", image)
    # Its digest was not at hand.
    assert "@sha256:" in image or name == "ollama"


def test_only_what_must_reaches_the_outside() -> None:
    assert FILE["networks"]["inside"] == {"internal": True}
    outside = {name for name, service in SERVICES.items() if "outside" in service["networks"]}
    assert outside == {"worker", "flower", "ollama", "prometheus", "grafana"}


def test_a_container_gets_longer_to_stop_than_a_worker_takes() -> None:
    grace = known_keys()["work.shutdown_grace_seconds"][0].default
    seconds = int(OURS["worker"]["stop_grace_period"].removesuffix("s"))
    assert seconds > grace + 3


def test_redis_is_set_up_to_lose_nothing() -> None:
    lines = (ROOT / "deploy/redis/redis.conf").read_text().splitlines()
    assert {"appendonly yes", "appendfsync everysec", "maxmemory-policy volatile-lru"} <= set(lines)
    redis = SERVICES["redis"]
    assert redis["working_dir"] in {volume.split(":")[1] for volume in redis["volumes"]}, "where its files are"


@pytest.mark.parametrize("password", ["", "pa ss", "pä", "a/b", "a@b", "a%20", "a$b", "a'b", "a\nb"])
def test_redis_starts_with_no_password_that_a_url_cannot_have(password: str, tmp_path: Path) -> None:
    env = {"REDIS_PASSWORD": password, "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    ran = subprocess.run(
        ["/bin/sh", ROOT / "deploy/redis/start.sh"], env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert ran.stderr.startswith("REDIS_PASSWORD: expected letters")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("password", "code"), [("", 2), ("x", 0)])
def test_grafana_starts_with_a_password_only(password: str, code: int) -> None:
    shell, *options = SERVICES["grafana"]["entrypoint"]
    (script,) = SERVICES["grafana"]["command"]
    env = {"GF_SECURITY_ADMIN_PASSWORD": password}
    ran = subprocess.run(
        [shell, *options, script.replace("/run.sh", "true")], env=env, capture_output=True, check=False
    )
    assert (ran.returncode != 0) == bool(code)
    assert (b"set GRAFANA_PASSWORD" in ran.stderr) == bool(code)


def test_prometheus_gets_the_user_and_the_password_of_the_dashboard(tmp_path: Path) -> None:
    shell, *options = SERVICES["prometheus"]["entrypoint"]
    (script,) = SERVICES["prometheus"]["command"]
    # The folder of the image's first: a checkout may stand in one of that name.
    here = {"/tmp/": f"{tmp_path}/", "/etc/themes": str(ROOT / "deploy/prometheus"), "exec /bin/prometheus": "true"}  # noqa: S108
    for inside, outside in here.items():
        script = script.replace(inside, outside)
    subprocess.run([shell, *options, script], env={"AUTH": "me:pass:word", "PATH": "/usr/bin:/bin"}, check=True)
    assert (tmp_path / "themes_dashboard_password").read_text() == "pass:word"
    assert "username: me\n" in (tmp_path / "prometheus.yml").read_text()
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}


def test_the_image_is_built_in_two_stages_of_one_pinned_base_and_runs_as_a_number() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^FROM (.+)$", text, re.MULTILINE) == ["${PYTHON} AS build", "${PYTHON}"]
    assert re.search(r"^ARG PYTHON=python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert re.search(r"^USER (\d+):(\d+)$", text, re.MULTILINE)
    assert "--require-hashes" in text
    assert text.rstrip().endswith('CMD ["--help"]')


def test_what_the_image_copies_is_there_and_reaches_the_engine() -> None:
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert {"config", "tasks", "workers", "scripts", "requirements.lock"} <= set(sources)
    first, *rest = (ROOT / ".dockerignore").read_text().splitlines()
    assert first == "*"
    let_in = {line[1:] for line in rest if line.startswith("!")}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert {source, source.split("/")[0]} & let_in, source
    for secret in (".env", "secrets/llm_api_key", ".git/config", "tests/conftest.py", "var/themes.db"):
        assert not any(fnmatch.fnmatch(secret.split("/")[0], pattern) for pattern in let_in), secret
