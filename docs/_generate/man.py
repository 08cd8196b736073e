"""Write the manual page docs/man/themes.1 from the commands' own help.

python docs/_generate/man.py
"""

from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

from scripts.main import GROUPS, VERBS, cli

PAGE = Path(__file__).parents[1] / "man" / "themes.1"
FILES = {
    "var/": "The state directory of a checkout (THEMES_STATE_DIR): database, private Redis, logs.",
    "config/config.yaml": "Every setting with its default; a file of yours is named by THEMES_CONFIG.",
}
CODES = {
    "0": "Done.",
    "1": "Some or all of the work failed.",
    "2": "Wrong usage or configuration.",
    "130": "Ctrl-C.",
}


def escaped(text: str) -> str:
    """Text as roff reads it: its own characters lose their meaning, also at the beginning of a line."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return f"\\&{text}" if text.startswith(".") else text


def _items(records: dict[str, str]) -> Iterator[str]:
    for name, said in records.items():
        yield from (".TP", f"\\fB{escaped(name)}\\fR", escaped(" ".join(said.split())))


def _verb(context: click.Context) -> Iterator[str]:
    """One command: how it is called, what it does, its options, its example."""
    command = context.command
    yield from (".SS", escaped(context.command_path))
    yield from (".B", escaped(" ".join([context.command_path, *command.collect_usage_pieces(context)])))
    for paragraph in cleandoc(command.help or "").split("\n\n"):
        yield from (".PP", escaped(" ".join(paragraph.split())))
    records = [one.get_help_record(context) for one in command.get_params(context) if isinstance(one, click.Option)]
    yield from _items(dict(record for record in records if record and "--help" not in record[0]))
    yield from (".PP", escaped(command.epilog or ""))
    for name, below in getattr(command, "commands", {}).items():
        yield from _verb(click.Context(below, info_name=name, parent=context))


def lines() -> Iterator[str]:
    """The page, line by line."""
    top = click.Context(cli, info_name="themes")
    yield '.\\" Made by docs/_generate/man.py of what --help says.'
    yield ".TH THEMES 1"
    # Ragged on the right: addresses and options are too long for lines of one width.
    yield ".ad l"
    yield from (".SH NAME", f"themes \\- {escaped((cli.help or '').lower().rstrip('.'))}")
    yield from (".SH SYNOPSIS", ".B themes", escaped("[OPTIONS] VERB [ARGUMENTS]"))
    yield ".SH OPTIONS"
    yield from _items(dict(filter(None, (one.get_help_record(top) for one in cli.get_params(top)))))
    for name in VERBS:
        if name in GROUPS:
            yield from (".SH", f"VERBS: {GROUPS[name].upper()}")
        yield from _verb(click.Context(cli.get_command(top, name), info_name=name, parent=top))
    yield ".SH EXIT STATUS"
    yield from _items(CODES)
    yield ".SH FILES"
    yield from _items(FILES)


def page() -> str:
    """The page as it is written."""
    return "\n".join(lines()) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), "utf-8")
