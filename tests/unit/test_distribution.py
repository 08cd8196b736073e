"""The name under which this is installed, and its version."""

import tomllib
from importlib.metadata import metadata
from pathlib import Path

from click.testing import CliRunner

from scripts.main import cli

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_distribution_has_a_name_of_its_own_and_says_its_version() -> None:
    said = CliRunner().invoke(cli, ["--version"], prog_name="themes")
    assert said.output == f"themes, version {PROJECT['version']}\n"
    assert metadata(PROJECT["name"])["Name"] == PROJECT["name"] != "themes"
