"""The `themes` command: finds the verb's file, runs it, and turns every error into one clear line.

A verb is imported only when it is called, so that `themes enqueue` never pays for aiohttp or SQLAlchemy.
"""

import sys

from scripts.lib.interrupts import leave_at_once, raise_from_now_on

if __name__ == "__main__" or sys.argv[0].endswith("/themes"):
    leave_at_once()

import importlib
import inspect
import logging
import os
import traceback
from typing import Final

import click

from config.errors import ThemesError
from config.settings import NOTED, Settings, load
from tasks import logs
from tasks.texts import cleaned

#: In the manual's order. Each is a module here that has a click command called `command`.
VERBS: Final = (
    "demo", "up", "enqueue", "run", "watch", "status", "top", "results", "report", "failures", "retry", "cancel",
    "pause", "resume", "tune", "cache", "worker", "worker-memory", "consumer", "dashboard", "sandbox-llm", "doctor",
    "config",
)  # fmt: skip
#: Verbs whose files in the state directory are for this user alone.
PRIVATE: Final = frozenset({"demo", "up", "run", "worker", "consumer", "dashboard", "cache"})
#: Exit code of a program that Ctrl-C ended, as shells expect it.
INTERRUPTED: Final = 130


class Summaries(click.Group):
    """A group whose `--help` has the first paragraph of each command's help, not cut."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        named = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, inspect.cleandoc(verb.help or "").partition("\n\n")[0]) for name, verb in named if verb]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Verbs(Summaries):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        if cmd_name in PRIVATE:
            os.umask(0o077)
        command: click.Command = importlib.import_module(f"scripts.{cmd_name}".replace("-", "_")).command
        raise_from_now_on()
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb; click itself would make a failure of a reader that has seen enough."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # The reader of our output went away (`themes results JOB | head`): nothing is wrong.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


@click.command(
    cls=Verbs,
    # `--help` is as wide as the terminal; of a pipe, COLUMNS says how wide it is.
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": sys.maxsize},
)
@click.option("--config", "config_file", metavar="FILE", help="Settings file (THEMES_CONFIG).")
@click.option("--debug", is_flag=True, help="Log in detail, and show tracebacks of errors.")
@click.version_option(package_name="smart-destination-themes")
def cli(config_file: str | None, *, debug: bool) -> None:
    """Find travel themes for destinations, in bulk, with a large language model."""
    if config_file:
        os.environ["THEMES_CONFIG"] = config_file
    if debug:
        os.environ["THEMES_DEBUG"] = "1"
    logs.configure(logging.DEBUG if debug else logging.INFO, "auto")


def settings_from(**overrides: object) -> Settings:
    """Load the settings, with what the command line says on top; options that were not given are None."""
    given = {key.replace("__", "."): str(value) for key, value in overrides.items() if value is not None}
    settings = load(overrides=given)
    logs.configure(log_level(settings), settings.logging.format)
    _print_notices(settings)
    return settings


def _print_notices(settings: Settings) -> None:
    if not os.environ.get(NOTED):
        for notice in settings.remarks:
            print(f"themes: note: {notice}", file=sys.stderr)
        os.environ[NOTED] = "1"


def log_level(settings: Settings) -> str:
    return "DEBUG" if os.environ.get("THEMES_DEBUG") else settings.logging.level


def main() -> None:
    """Run `themes`; exit 0 done, 1 some or all of the work failed, 2 wrong usage or configuration."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        print("themes: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except ThemesError as exc:
        _show(exc)
        sys.exit(exc.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _show(exc: ThemesError) -> None:
    if os.environ.get("THEMES_DEBUG"):
        traceback.print_exception(exc)
    # An error may repeat what stands in a file, in its name, or in an answer.
    print(f"themes: {cleaned(str(exc))}", file=sys.stderr)


if __name__ == "__main__":
    main()
