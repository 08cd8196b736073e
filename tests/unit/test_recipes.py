"""The recipes of CONTRIBUTING.md do what they say, in as many files as they say."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tasks.messages import Destination
from tasks.packed import unpack_profile
from tests.support.processors import processor_of
from workers.pipeline.prompts import BUILT_IN
from workers.sandbox.server import SandboxServer

if TYPE_CHECKING:
    from config.settings import Settings

ROOT = Path(__file__).parents[2]
STAGE = """---
stage: analyse.crowds
asks: each theme
needs: [discover.*]
max_tokens: 400
fields:
  crowds: {type: string, enum: [quiet, busy]}
---
For each numbered theme of the destination below, say how crowded it is.
"""


async def test_a_stage_is_one_file(tmp_path: Path, settings_for, sandbox: SandboxServer) -> None:
    prompts = tmp_path / "prompts"
    shutil.copytree(BUILT_IN, prompts)
    (prompts / "analyse.crowds.md").write_text(STAGE, encoding="utf-8")
    settings: Settings = settings_for(OPENAI_BASE_URL=sandbox.base_url, THEMES_MODEL="sandbox")
    async with processor_of(settings, prompts) as processor:
        packed = (await processor.process(Destination.of("Kyoto", "Japan"))).profile
    assert packed is not None
    profile = unpack_profile(packed, "")
    assert profile.status == "ok"
    assert {theme.more["crowds"] for theme in profile.themes} <= {"quiet", "busy"}


def test_a_setting_is_three_places(tmp_path: Path) -> None:
    for name in ("config", "tasks", "workers", "scripts", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "pictures"))
    sections, file = tmp_path / "config" / "sections.py", tmp_path / "config" / "config.yaml"
    _insert(sections, "    prompts_dir:", "    greetings: int = setting(3, low=1, high=9)\n")
    _insert(file, "  prompts_dir:", "  # How many times a greeting is said.\n  greetings: 3\n")
    env = {key: value for key, value in os.environ.items() if not key.startswith("THEMES_")}
    env |= {"PYTHONPATH": str(tmp_path), "THEMES_PIPELINE__GREETINGS": "12"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    said = run("-m", "scripts.main", "config", "check")
    assert "pipeline.greetings: expected a number from 1 to 9, got 12 (environment THEMES_PIPELINE__GREETINGS)" in (
        said.stderr.replace("'", "")
    )
    env["THEMES_PIPELINE__GREETINGS"] = "4"
    assert (
        "pipeline.greetings\t4\tenvironment THEMES_PIPELINE__GREETINGS"
        in run("-m", "scripts.main", "config", "show").stdout
    )
    assert run("docs/_generate/configuration.py").returncode == 0
    page = (tmp_path / "docs" / "reference" / "configuration.md").read_text()
    assert "| `greetings` | `3` | whole number, 1 to 9 | How many times a greeting is said. |" in page


def _insert(file: Path, before: str, line: str) -> None:
    text = file.read_text()
    assert text.count(f"\n{before}") == 1
    at = text.index(f"\n{before}") + 1
    # Above the comment of what follows.
    while text[:at].rstrip("\n").rpartition("\n")[2].lstrip().startswith("#"):
        at = text.rindex("\n", 0, at - 1) + 1
    file.write_text(text[:at] + line + text[at:])


def test_the_picture_of_the_rooms_is_what_the_contract_makes_of_it() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "_generate" / "architecture.py"))
    page = (ROOT / "docs" / "explanation" / "architecture.svg").read_text("utf-8")
    assert page == made["draw"](), "python docs/_generate/architecture.py"


@pytest.mark.parametrize("story", ["A destination's way", "A result's way"])
def test_a_story_is_told_in_at_most_twelve_files(story: str) -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text("utf-8")
    told = page.partition(f"## {story}\n")[2].partition("\n## ")[0]
    files = re.findall(r"^\d+\. `([\w/]+\.py)`", told, re.MULTILINE)
    assert 8 <= len(files) == len(set(files)) <= 12
    assert all((ROOT / file).is_file() for file in files)


def test_every_room_stands_on_the_page() -> None:
    page = (ROOT / "docs" / "explanation" / "architecture.md").read_text("utf-8")
    rooms = [
        path for folder in ("workers", "tasks") for path in (ROOT / folder).iterdir() if (path / "__init__.py").exists()
    ]
    assert all(f"| `{path.relative_to(ROOT)}/` |" in page for path in rooms)


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "SECURITY.md").read_text("utf-8"))
    assert len(named) > 12
    assert all((ROOT / file).is_file() for file in named)
