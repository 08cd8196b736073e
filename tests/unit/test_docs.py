"""What the documents say is there."""

import ast
import re
import tomllib
from pathlib import Path

import click
import pytest

from config import legacy
from config.settings import KNOWN_VARIABLES, OTHER_VARIABLES, known_keys
from scripts.main import VERBS, cli
from tests.support.compose import dotenv

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")), *(ROOT / "docs").rglob("*.md")]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(DOCUMENTS)}


def _commands(text: str) -> list[str]:
    return re.findall(r"(?:^|[`\s])themes ((?:--\w+ )?[a-z][a-z-]+[^`\n]*)", text)


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_and_option_in_the_documents_exists(name: str) -> None:
    context = click.Context(cli)
    for line in _commands(TEXTS[name]):
        words = line.split()
        if words[0] not in VERBS:
            continue
        command = cli.get_command(context, words[0])
        assert command is not None
        commands = [command, *getattr(command, "commands", {}).values()]
        known = {option for one in commands for parameter in one.params for option in parameter.opts}
        known |= {option for one in commands for parameter in one.params for option in parameter.secondary_opts}
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line.split("#")[0]):
            assert option in known, f"themes {words[0]} has no {option}"


def test_the_reference_names_every_verb() -> None:
    for verb in VERBS:
        assert f"`themes {verb}" in TEXTS["docs/reference/commands.md"], verb


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_leads_somewhere(name: str) -> None:
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)#]+)\)", TEXTS[name]):
        assert (folder / target).exists(), target


def test_the_table_of_documents_has_every_page() -> None:
    pages = {name.removeprefix("docs/") for name in TEXTS if name.count("/") == 2}
    assert pages == set(re.findall(r"\]\(([^)#]+)\)", TEXTS["docs/README.md"]))


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_and_script_named_in_the_documents_exists(name: str) -> None:
    for path in re.findall(r"`((?:config|tasks|workers|scripts|tests)/[\w./-]+\w)`", TEXTS[name]):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", TEXTS)
def test_every_variable_and_setting_in_the_documents_is_known(name: str) -> None:
    variables = {f"THEMES_{key.upper().replace('.', '__')}" for key in known_keys()}
    variables |= set(KNOWN_VARIABLES) | OTHER_VARIABLES
    deployed = set(dotenv((ROOT / ".env.example").read_text()))
    for variable in re.findall(r"\b(?:THEMES|OPENAI|REDIS|CELERY|DATABASE)_[A-Z_]+\b(?!<)", TEXTS[name]):
        assert variable in variables | deployed or variable == "THEMES_", variable
    settings = known_keys()
    sections = {key.partition(".")[0] for key in settings if "." in key}
    for key in re.findall(r"`([a-z_]+\.[a-z_]+)`", TEXTS[name]):
        if key.partition(".")[0] in sections - {"redis", "config"}:
            assert key in settings or key in legacy.KNOWN, key


def test_the_python_of_the_readme_is_valid_and_imports_what_exists() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL)
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = __import__(str(node.module), fromlist=["x"])
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) < 120


def test_the_version_has_its_place_in_the_changelog() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    released = re.findall(
        r"^## \[(\d[^\]]*)\] - (\d{4}-\d{2}-\d{2})$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert released[0][0] == version
    assert [day for _, day in released] == sorted((day for _, day in released), reverse=True)
