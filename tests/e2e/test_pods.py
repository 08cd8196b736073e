"""What deploy/kubernetes/overlays/try starts, as processes of this machine, with the secrets that the guide makes."""

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import until
from tests.support.compose import ROOT, Machine, free_port
from tests.support.kustomize import DEPLOY, config_maps, environment, pod_of, render
from tests.support.redis_cli import redis_binaries

CITIES = "name,country\nKyoto,Japan\nOslo,Norway\nLima,Peru\n"
KEY = "sk-of-the-test"


def _secrets(folder: Path) -> dict[str, dict[str, str]]:
    """What the guide's commands make, run with a `kubectl` that says what it was told."""
    (folder / "secrets").mkdir()
    (folder / "secrets/llm_api_key").write_text(KEY)
    guide = (ROOT / "docs/guide/cluster.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^    (REDIS=.*|kubectl -n themes create secret .*)$", guide, re.MULTILINE)
    script = "kubectl() { printf '%s\\n' \"$@\"; }\n" + "\n".join(lines)
    said = subprocess.run(["/bin/bash", "-euc", script], capture_output=True, text=True, check=True, cwd=folder).stdout
    made: dict[str, dict[str, str]] = {}
    secret: dict[str, str] = {}
    for line in said.splitlines():
        if option := re.fullmatch(r"--from-(literal|file)=([^=]+)=(.*)", line):
            secret[option[2]] = option[3] if option[1] == "literal" else (folder / option[3]).read_text()
        elif line.startswith("themes-"):
            secret = made[line] = {}
    return made


def _services(secrets: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The containers in the words of a compose file."""
    objects = render(DEPLOY / "kubernetes/overlays/try")
    found = {}
    for one in objects:
        for container in pod_of(one).get("containers", []):
            env = environment(container, config_maps(objects), lambda name, key: secrets[name][key])
            probe = container.get("livenessProbe", container.get("readinessProbe"))
            found[one["metadata"]["name"]] = {
                "entrypoint": container.get("command", ["themes"]),
                "command": container.get("args", []),
                "environment": env,
                "working_dir": container.get("workingDir", "/tmp"),  # noqa: S108  # the image's own
                "healthcheck": {"test": ["CMD", *probe.get("exec", {"command": []})["command"]]},
            }
    return found


@pytest.fixture
def machine(tmp_path: Path, postgresql_url: str) -> Iterator[Machine]:
    secrets = _secrets(tmp_path)
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm/api-key").write_text(secrets["themes-llm"]["api-key"])
    (tmp_path / "state").mkdir()
    # As an emptyDir of a pod whose group may write.
    (tmp_path / "state").chmod(0o2777)
    redis, llm, dashboard = (free_port() for _ in range(3))
    here = {
        "redis:6379": f"127.0.0.1:{redis}", "6379": redis, "sandbox:8089": f"127.0.0.1:{llm}", "8089": llm,
        "0.0.0.0": "127.0.0.1", "5555": dashboard, "/state": str(tmp_path / "state"),  # noqa: S104
        "/etc/themes/llm": str(tmp_path / "llm"), "/etc/themes": str(ROOT / "deploy/redis"),
        "/data": str(tmp_path / "data"), secrets["themes-database"]["url"]: postgresql_url,
    }  # fmt: skip
    made = Machine(_services(secrets), tmp_path, here, redis_binaries(tmp_path / "bin"))
    yield made
    made.stop()


def test_every_pod_runs_as_its_manifest_says_and_they_do_a_job(machine: Machine) -> None:
    machine.start_redis()
    machine.start("sandbox", "--latency", "20ms", "--api-key", KEY)
    until("the sandbox to answer", lambda: _answers(f"http://127.0.0.1:{machine.here['8089']}/health"))
    machine.start_healthy("worker", "consumer", "dashboard")
    said = machine.run("dashboard", "enqueue", "-", "--wait", stdin=CITIES)
    assert said.returncode == 0, said.stderr
    listed = machine.run("dashboard", "results", said.stdout.strip(), "--format", "jsonl").stdout
    assert {json.loads(line)["name"] for line in listed.splitlines()} == {"Kyoto", "Oslo", "Lima"}
    for name in ("worker", "consumer", "dashboard"):
        process = machine.processes.pop(name)
        process.terminate()
        assert process.wait(180) == 0, machine.log(name)
        assert "Traceback" not in machine.log(name)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=180) as answer:  # noqa: S310  # our own
            return bool(answer.status == 200)
    except OSError:
        return False
