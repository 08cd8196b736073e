"""The compose file as the engine reads it, and its services as processes of this machine.

No engine runs here. What is left out is the container itself: each service has its own command, its own environment and
its own healthcheck; addresses, ports and paths of the inside become those of the test.
"""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
#: Seconds that a service may take to be healthy; a hanging one is a failing one.
SECONDS = 180
#: `${NAME}`, `${NAME:-default}`, `${NAME:?message}`, and `$$`, which is a dollar.
_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::([-?])([^}]*))?\})")


def variables(text: str) -> set[str]:
    """The names of the variables that a compose file takes."""
    return {match[2] for match in _VARIABLE.finditer(text) if match[2]}


def interpolated(value: Any, env: Mapping[str, str]) -> Any:
    """A part of the file with its variables filled in. Raises ValueError: one that must be set is not."""
    if isinstance(value, dict):
        return {key: interpolated(one, env) for key, one in value.items()}
    if isinstance(value, list):
        return [interpolated(one, env) for one in value]
    return _VARIABLE.sub(lambda match: _filled(match, env), value) if isinstance(value, str) else value


def _filled(match: re.Match[str], env: Mapping[str, str]) -> str:
    if match[1]:
        return "$"
    found = env.get(match[2], "")
    if not found and match[3] == "?":
        raise ValueError(match[4])
    return found or (match[4] if match[3] == "-" else "")


def read(env: Mapping[str, str]) -> dict[str, Any]:
    """The whole file for an environment."""
    found: dict[str, Any] = interpolated(yaml.safe_load(COMPOSE.read_text()), env)
    return found


def dotenv(text: str) -> dict[str, str]:
    """The variables of a .env file."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def free_port() -> str:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


@dataclass
class Machine:
    """This machine in the place of the containers."""

    services: dict[str, Any]
    folder: Path
    #: What stands in a container -> what stands here; the longest is replaced first.
    here: dict[str, str]
    #: The folder of a `redis-server` and a `redis-cli`.
    binaries: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def _local(self, text: str) -> str:
        inside = "|".join(re.escape(one) for one in sorted(self.here, key=len, reverse=True))
        return re.sub(inside, lambda match: self.here[match[0]], text)

    def environment(self, name: str) -> dict[str, str]:
        """What a container of this service has in its environment."""
        own = {key: self._local(str(value)) for key, value in self.services[name].get("environment", {}).items()}
        path = f"{self.binaries}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        # The state directory is what the image says of itself.
        return {"PATH": path, "TMPDIR": str(self.folder), "THEMES_STATE_DIR": self._local("/state"), **own}

    def command(self, name: str) -> list[str]:
        """What a container of this service runs: `themes` is the image's entrypoint."""
        service = self.services[name]
        words = [*service.get("entrypoint", ["themes"]), *service.get("command", [])]
        return [self._local(word) for word in words]

    def start(self, name: str, *extra: str) -> subprocess.Popen[bytes]:
        """Start a service; `extra` is what its container would have of its own (a folder, a port)."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*self.command(name), *extra],
                env=self.environment(name),
                cwd=self._local(self.services[name].get("working_dir", str(self.folder))),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.processes[name]

    def start_redis(self) -> None:
        """Start Redis on its port of this machine; wait for it where something can ask it."""
        Path(self.here["/data"]).mkdir()
        self.start("redis", "--bind", "127.0.0.1", "--port", self.here["6379"])
        if (self.binaries / "redis-cli").exists():
            self.until_healthy("redis")

    def start_healthy(self, *names: str) -> None:
        """Start services, none of which is healthy before, and wait until all of them are."""
        for name in names:
            assert not self.is_healthy(name), f"{name} runs already"
            self.start(name)
        for name in names:
            self.until_healthy(name)

    def until_healthy(self, name: str) -> None:
        """Wait for the healthcheck of a service that runs."""
        deadline = time.monotonic() + SECONDS
        while not self.is_healthy(name):
            assert self.processes[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, f"{name} is not healthy after {SECONDS} s: {self.log(name)}"

    def run(self, name: str, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """As `docker compose run --rm -T NAME WORDS`."""
        return self._run([*self.services[name].get("entrypoint", ["themes"]), *words], name, stdin)

    def is_healthy(self, name: str) -> bool:
        """Whether the healthcheck of a service passes."""
        kind, *words = [self._local(word) for word in self.services[name]["healthcheck"]["test"]]
        assert kind in {"CMD", "CMD-SHELL"}
        return self._run(words if kind == "CMD" else ["/bin/sh", "-c", *words], name, "").returncode == 0

    def _run(self, command: list[str], name: str, stdin: str) -> subprocess.CompletedProcess[str]:
        env = self.environment(name)
        return subprocess.run(
            command, env=env, input=stdin, capture_output=True, text=True, timeout=180, check=False, cwd=self.folder
        )

    def log(self, name: str) -> str:
        """What a service has written."""
        return (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def stop(self) -> None:
        """Stop what still runs as the engine does, the last started first."""
        for process in reversed(self.processes.values()):
            process.terminate()
            process.wait(180)
