"""What a verb imports: what it does not use costs it CPU at each start."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from config.errors import ConfigError
from scripts.main import VERBS, cli

#: Packages that only work needs, not a look at it.
HEAVY = {"aiohttp", "aiosqlite", "flower", "jsonschema_rs", "opentelemetry", "psutil", "sqlalchemy", "tornado"}
QUEUE = {"celery", "kombu"}


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_line_is_the_first_paragraph_of_the_verbs_help(verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    assert VERBS[verb] == inspect.cleandoc(command.help or "").partition("\n\n")[0]


def _paths() -> list[list[str]]:
    """Every verb, and every command below one."""
    verbs = {name: cli.get_command(click.Context(cli), name) for name in VERBS}
    below = [[name, one] for name, verb in verbs.items() for one in getattr(verb, "commands", ())]
    return [[], *([name] for name in VERBS), *below]


@pytest.mark.parametrize("path", _paths(), ids=" ".join)
def test_every_help_ends_with_an_example_that_is_read_without_complaint(path: list[str]) -> None:
    said = CliRunner().invoke(cli, [*path, "--help"], prog_name="themes").output
    example = said.rpartition("\n  Example: ")[2].split()
    assert example[: len(path) + 1] == ["themes", *path]
    command: click.Command = cli
    for depth, name in enumerate(example, start=1):
        context = command.make_context(name, example[depth:])
        if not isinstance(command, click.Group):
            break
        found = command.get_command(context, example[depth])
        assert found is not None
        command = found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["watc"], "no command 'watc'; did you mean `themes watch`?"),
        (["cache", "stat"], "no command 'stat'; did you mean `themes cache stats`?"),
        (["xyz"], "no command 'xyz'; see `themes --help`"),
    ],
)
def test_a_mistyped_verb_is_answered_with_the_nearest(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cli.main(arguments, prog_name="themes", standalone_mode=False)
    assert str(caught.value) == said


def test_the_help_has_every_verb_in_one_of_four_groups() -> None:
    said = CliRunner().invoke(cli, ["--help"]).output
    assert [line for line in said.splitlines() if line.endswith(":") and line[0] != " "] == [
        "Options:", "Start:", "Watch:", "Results:", "Operate:",
    ]  # fmt: skip
    assert said.count("\n  watch ") == said.count("\n  config ") == 1


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ("bash", "plain,consumer\nplain,config\n"),
        ("zsh", "plain\nconsumer\n{consumer}\nplain\nconfig\n{config}\n"),
        ("fish", "plain,consumer\t{consumer}\nplain,config\t{config}\n"),
    ],
)
def test_a_shell_completes_a_verb_without_importing_any(shell: str, said: str) -> None:
    verbs = sorted(name for name in VERBS if name.startswith("con"))
    ran = _completed(f"{shell}_complete", "themes con", "con" if shell == "fish" else "1")
    assert sorted(ran.stdout.split("\n")) == sorted(said.format(**{name: VERBS[name] for name in verbs}).split("\n"))
    assert "scripts.consumer" not in ran.stderr
    # And what is added to the shell's start file makes it ask that.
    assert f"_THEMES_COMPLETE={shell}_complete" in _completed(f"{shell}_source").stdout


def test_a_shell_completes_options_and_files() -> None:
    assert "plain,--dry-run" in _completed("bash_complete", "themes run --dry", "2").stdout
    assert _completed("bash_complete", "themes run cit", "2").stdout == "file,cit\n"
    assert _completed("bash_complete", "themes results df5a3a -o cit", "4").stdout == "file,cit\n"


def _completed(instruction: str, words: str = "", at: str = "0") -> subprocess.CompletedProcess[str]:
    asked = {"_THEMES_COMPLETE": instruction, "COMP_WORDS": words, "COMP_CWORD": at}
    command = [sys.executable, "-X", "importtime", Path(sys.executable).with_name("themes")]
    return subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "unused"),
    [
        (["--help"], HEAVY | QUEUE | {"asyncio", "logging", "msgspec", "redis", "rich", "yaml", "config.settings"}),
        (["status", "--help"], HEAVY | QUEUE | {"rich"}),
        (["enqueue", "--help"], HEAVY | QUEUE | {"rich"}),
    ],
)
def test_a_verb_does_not_import_what_it_does_not_use(arguments: list[str], unused: set[str]) -> None:
    code = (
        # redis-py imports OpenTelemetry where it is installed.
        "import atexit, sys; sys.modules['opentelemetry'] = None\n"
        "from scripts.main import main\n"
        "atexit.register(lambda: print(*[n for n, m in sys.modules.items() if m], file=sys.stderr)); main()"
    )
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert not unused & set(ran.stderr.split())
