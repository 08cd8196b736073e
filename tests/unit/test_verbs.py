"""What a verb imports: what it does not use costs it CPU at each start."""

import inspect
import subprocess
import sys

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
