"""Commands of docs/guide/cluster.md: those for this machine are run, the others are held against what they name."""

import re
import shlex
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from redis import Redis
from redis.exceptions import NoPermissionError

from scripts.lib.local_redis import LocalRedis
from scripts.main import VERBS
from tasks.redis_url import parsed
from tests.support.compose import ROOT, dotenv, read
from tests.support.kustomize import DEPLOY, render
from tests.support.redis_cli import redis_cli

GUIDE = (ROOT / "docs/guide/cluster.md").read_text()
#: The lines of code, with those that go on joined.
LINES = [line.strip() for line in re.findall(r"^    .+$", GUIDE.replace("\\\n        ", ""), re.MULTILINE)]
#: What needs an engine or a cluster.
ELSEWHERE = ("docker compose ", "kubectl ")


def _of(beginning: str) -> list[list[str]]:
    return [shlex.split(line) for line in LINES if line.startswith(beginning)]


def test_the_set_up_of_compose_makes_what_the_file_needs(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".env.example", tmp_path)
    lines = [line for line in LINES if line.startswith(("cp ", "mkdir ", "sed "))]
    assert len(lines) == 4
    subprocess.run(["/bin/bash", "-euc", "\n".join(lines)], cwd=tmp_path, check=True, env={"PATH": "/usr/bin:/bin"})
    env = dotenv((tmp_path / ".env").read_text())
    assert re.fullmatch(r"[0-9a-f]{48}", env["REDIS_PASSWORD"])
    assert re.fullmatch(r"me:[0-9a-f]{48}", env["THEMES_DASHBOARD__BASIC_AUTH"])
    assert env["REDIS_PASSWORD"] not in env["THEMES_DASHBOARD__BASIC_AUTH"]
    assert read(env)["services"]
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in (".env", "secrets", "secrets/llm_api_key")]
    assert modes == [0o600, 0o700, 0o644]


def test_every_command_of_compose_names_services_and_verbs_that_are_there() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    commands = _of("docker compose ")
    assert {words[2] for words in commands} == {"up", "run", "logs", "down"}
    for words in commands:
        if words[2] == "run":
            service, verb = [word for word in words[3:] if not word.startswith("-")][:2]
            assert service in services
            assert verb in VERBS
        scaled = [words[at + 1].partition("=")[0] for at, word in enumerate(words) if word == "--scale"]
        assert set(scaled + ([words[-1]] if words[2] == "logs" else [])) <= set(services)
    profiles = set(re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE))
    assert profiles == {one for service in services.values() for one in service.get("profiles", [])} - {"tools"}


def test_every_command_of_kubernetes_names_what_is_there() -> None:
    (applied,) = [words[-1] for words in _of("kubectl apply")]
    objects = render(ROOT / applied)
    deployments = {one["metadata"]["name"] for one in objects if one["kind"] == "Deployment"}
    named = {word.partition("/")[2] for words in _of("kubectl ") for word in words if word.startswith("deploy/")} - {""}
    assert named - {applied.partition("/")[2]} <= deployments
    spaces = {words[words.index("-n") + 1] for words in _of("kubectl ") if "-n" in words}
    assert spaces == {one["metadata"]["namespace"] for one in objects} == {"themes"}
    for words in _of("kubectl -n themes exec"):
        assert words[words.index("themes", words.index("--")) + 1] in VERBS


def test_the_urls_of_redis_can_be_read() -> None:
    urls = [parsed(line.removeprefix("REDIS_URL=")) for line in LINES if line.startswith("REDIS_URL=")]
    assert [len(url.sentinels) for url in urls] == [0, 3]


def test_a_user_is_made_on_a_running_server(tmp_path: Path) -> None:
    program = redis_cli()
    if program is None:
        pytest.skip("needs redis-cli")
    (line,) = [line for line in LINES if line.startswith("redis-cli ")]
    with LocalRedis(tmp_path / "var", "bundled") as server:
        _, password, port = re.split(r"redis://:|@127\.0\.0\.1:", server.url.removesuffix("/1"))
        env = {"PATH": "/usr/bin:/bin", "REDISCLI_AUTH": password, "PASSWORD": "a-Password_1"}
        command = line.replace("redis-cli ", f"{program} -p {port} ", 1)
        ran = subprocess.run(
            ["/bin/sh", "-euc", command], cwd=ROOT, env=env, capture_output=True, text=True, check=True
        )
        assert ran.stdout.strip() == "OK"
        with Redis.from_url(f"redis://themes:a-Password_1@127.0.0.1:{port}/1") as client:
            client.set("themes:x", 1)
            with pytest.raises(NoPermissionError):
                client.get("other")


def test_every_line_of_code_is_one_that_is_tested_here() -> None:
    tested = (*ELSEWHERE, "cp ", "mkdir ", "sed ", "redis-cli ", "REDIS_URL=", "REDIS=$(")
    assert [line for line in LINES if not line.startswith(tested)] == []
    assert {path.name for path in (DEPLOY / "kubernetes/overlays").iterdir()} == {"try", "production"}
