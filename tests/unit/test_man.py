"""The manual page is what `--help` says, and `man` can show it."""

import os
import re
import shutil
import subprocess
import sys

import click
import pytest

from scripts.main import VERBS, cli
from tests.support.compose import ROOT

PAGE = ROOT / "docs" / "man" / "themes.1"


def _shown() -> str:
    if shutil.which("man") is None:
        if os.environ.get("CI"):
            pytest.fail("man is missing: .ci/run installs it")
        pytest.skip("needs man (Debian: apt-get install man-db)")
    env = os.environ | {"MANWIDTH": "200", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    shown = subprocess.run(
        ["man", "--warnings", "-l", PAGE], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert shown.stderr == ""
    return re.sub(r".\x08|\x1b\[[\d;]*m", "", shown.stdout)


def test_the_manual_page_is_what_help_says() -> None:
    # In a process of its own: click keeps the first help option of a command, and other tests call some by themselves.
    program = f"import runpy; print(runpy.run_path({str(ROOT / 'docs' / '_generate' / 'man.py')!r})['page'](), end='')"
    made = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert PAGE.read_text("utf-8") == made.stdout, "python docs/_generate/man.py"


def test_man_shows_each_verb_with_its_options_and_its_example() -> None:
    shown = _shown()
    titles = re.findall(r"^   themes ([\w-]+)$", shown, re.MULTILINE)
    assert titles == list(VERBS)
    for name, text in zip(VERBS, re.split(r"^   themes [\w-]+$", shown, flags=re.MULTILINE)[1:], strict=True):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert f"Example: themes {name}" in text
        options = {option for one in command.params for option in one.opts if option.startswith("-")}
        assert options <= set(re.findall(r"--?[a-z][\w-]*", text)), name
