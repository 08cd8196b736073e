"""Runs the commands of a guide as a reader pastes them: one after the other, in one shell, in a folder like a clone.

What is indented in a guide is for the shell, what is fenced is not. A command that ends with the comment "in a terminal
of its own" goes on beside the others. A command ends with 0, or with what its comment says:
"exits with 1", "exits with 0 or 1".
"""

import contextlib
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from tests.support.forks import Forks

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guide"
OWN_TERMINAL = "# in a terminal of its own"
#: Seconds that a command may take; one that hangs is a failing test.
DEADLINE = 180.0
#: What ends the output of a command, around its exit code.
MARK = re.compile(rb"\x1e(\d+)\x1f")


@dataclass(frozen=True, slots=True)
class Command:
    """What a reader pastes in one go, and the heading above it."""

    section: str
    text: str

    @property
    def codes(self) -> set[int]:
        """The exit codes that the guide promises."""
        found = re.search(r"# .*exits with (\d+)(?: or (\d+))?", self.text)
        return {int(code) for code in found.groups() if code} if found else {0}


def commands(guide: str) -> list[Command]:
    """The commands of a guide in their order; a here-document and a line that goes on are parts of theirs."""
    found: list[Command] = []
    section, part, end = "", [], ""
    fenced = False
    for line in (GUIDES / f"{guide}.md").read_text("utf-8").splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("## "):
            section = line[3:]
        if fenced or not (line.startswith("    ") or part):
            continue
        part.append(line.removeprefix("    "))
        opened = re.search(r"<<'?(\w+)'?", part[0])
        end = opened[1] if opened else ""
        if part[-1] == end or not (end or part[-1].endswith("\\")):
            found.append(Command(section, "\n".join(part)))
            part = []
    assert not part, f"{guide}: {part[0]} has no end"
    return found


def made_clone(folder: Path, forks: Forks) -> None:
    """Fill a folder with what a clone has after scripts/setup; `themes` there is this checkout's.

    What ends by itself is forked, what goes on in a terminal of its own (OWN_PROCESS) is a process like the user's.
    """
    for path in ROOT.iterdir():
        if path.name not in {".venv", ".git", "var"}:
            (folder / path.name).symlink_to(path)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'export PATH="{programs}:$PATH"\n')
    alone = f'PYTHONPATH={ROOT} exec {sys.executable} -m scripts.main "$@"'
    forked = f'exec {sys.executable} -IS {ROOT}/tests/support/forked.py {forks.socket} "$@"'
    (programs / "themes").write_text(f'#!/bin/sh\nif [ "$OWN_PROCESS" ]; then {alone}; else {forked}; fi\n')
    (programs / "themes").chmod(0o755)
    # So scripts/setup knows that it has nothing to do.
    stamp = "{ cat pyproject.toml requirements.lock | cksum; pwd; } >.venv/made-for"
    subprocess.run(["/bin/bash", "-c", stamp], cwd=folder, check=True)


class Shell:
    """A shell that stays, as a reader's terminal does. Use as a context manager."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            ["/bin/bash", "--norc"],
            cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        #: What stands in the guides for something that is not here, and what is.
        self.replaced: dict[str, str] = {}
        #: What goes on beside the others, by its command.
        self.beside: dict[str, psutil.Process] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_all()
        self._process.kill()
        self._process.communicate()

    def end_all(self, *those: str) -> None:
        """Kill what goes on beside the others, or of it `those`, as a machine that goes down does."""
        for command in those or list(self.beside):
            process = self.beside.pop(command)
            with contextlib.suppress(psutil.NoSuchProcess):
                for one in [*process.children(recursive=True), process]:
                    one.kill()
                psutil.wait_procs([process], DEADLINE)

    def stop_all(self) -> None:
        """End what goes on beside the others as Ctrl-C does."""
        for process in self.beside.values():
            process.terminate()
        _, living = psutil.wait_procs(self.beside.values(), DEADLINE)
        assert not living
        self.beside.clear()

    def use_llm(self, base_url: str) -> None:
        """Set the variables that the quickstart sets, and make `themes` known."""
        self.run(". .venv/bin/activate")
        self.run(f"export OPENAI_BASE_URL={base_url} OPENAI_API_KEY=none THEMES_MODEL=sandbox")

    def follow(self, guide: str, before: Mapping[str, Callable[[], object]] | None = None) -> dict[str, str]:
        """Paste all commands of a guide; return what those of each section have printed.

        `before` has what happens before the first command of a section.
        """
        told = commands(guide)
        if not any("activate" in command.text for command in told):
            self.run(". .venv/bin/activate")
        said: dict[str, str] = {}
        waiting = dict(before or {})
        for command in told:
            if command.section in waiting:
                waiting.pop(command.section)()
            began = time.monotonic()
            printed = self.paste(self._here(command))
            print(f"{time.monotonic() - began:6.2f} s  {command.text}\n{printed}")  # noqa: T201  # what a failing test shows
            said[command.section] = said.get(command.section, "") + printed
        assert not waiting, f"{guide} has no section {waiting}"
        return said

    def _here(self, command: Command) -> Command:
        text = command.text
        for there, here in self.replaced.items():
            text = text.replace(there, here)
        return Command(command.section, text)

    def run(self, text: str) -> tuple[int, str]:
        """Run a command to its end; return its exit code and what it has printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{{ {text}\n}} </dev/null 2>&1; printf '\\036%s\\037' $?\n".encode())
        self._process.stdin.flush()
        said, deadline = b"", time.monotonic() + DEADLINE
        while not (end := MARK.search(said)):
            ready, _, _ = select.select([self._process.stdout], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text}: no end after {DEADLINE:g} s, and so far: {said.decode()}"
            more = os.read(self._process.stdout.fileno(), 1 << 16)
            assert more, f"{text}: the shell is gone: {said.decode()}"
            said += more
        return int(end[1]), said[: end.start()].decode("utf-8", "replace")

    def paste(self, command: Command) -> str:
        """Run a command of a guide, hold it to its exit code, and return what it has printed."""
        if OWN_TERMINAL in command.text:
            return self._start(command.text)
        code, said = self.run(command.text)
        assert code in command.codes, f"{command.text}\nexit code {code}: {said}"
        return said

    def _start(self, text: str) -> str:
        log = self.folder / f"terminal-{len(list(self.folder.glob('terminal-*')))}.log"
        log.touch()
        _, said = self.run(f"OWN_PROCESS=1 {text.partition('#')[0]} >{log} 2>&1 & echo $!")
        process = psutil.Process(int(said.split()[-1]))
        self.beside[text.partition("#")[0].strip()] = process
        deadline = time.monotonic() + DEADLINE
        # Each of our long-running verbs says so when it is ready.
        while not (words := log.read_text()) or ("themes up" in text and "Ctrl-C" not in words):
            assert process.is_running(), f"{text}: {words}"
            assert time.monotonic() < deadline, f"{text}: says nothing: {words}"
            time.sleep(0.05)
        return words
