"""The `themes` command: finds the verb's file, runs it, and turns every error into one clear line.

A verb is imported only when it is called, so that `themes enqueue` never pays for aiohttp or SQLAlchemy.
"""

import sys

from scripts.lib.interrupts import leave_at_once, raise_from_now_on

if __name__ == "__main__" or sys.argv[0].endswith("/themes"):
    leave_at_once()

import contextlib
import importlib
import os
from collections.abc import Iterator
from inspect import cleandoc
from typing import TYPE_CHECKING, Any, Final

import click

from config.errors import ConfigError, ThemesError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from config.settings import Settings

#: In the manual's order, with the first paragraph of each one's help, so that `themes --help` imports none of them.
#: Each is a module here that has a click command called `command`.
VERBS: Final = {
    "demo": "Run 25 destinations (or FILE) through Redis, workers, consumer and Flower, and show what came of it.",
    "up": "Run Redis (if none is set), workers, consumer and dashboard here until Ctrl-C.",
    "enqueue": "Enqueue the destinations in FILE (CSV, JSONL, JSON, text; - is standard input) and print the job's id.",
    "run": "Do the job of FILE (CSV, JSONL, JSON, text; - is standard input) here, without Redis, and print its id.",
    "watch": "Watch JOB (by default the newest) until it ends or stops at its budget; exit 1 when any "
    "destination failed.",
    "status": "Show JOB, or the newest jobs.",
    "top": "Show jobs, workers, queue and calls as they are now; q or Ctrl-C ends it.",
    "report": "Tell where the time and the money of JOB went, what bounds it, and what to change; also while it runs.",
    "results": "Print the profiles of JOB that are in the database, also while it runs.",
    "failures": "Show why destinations of JOB failed, the most frequent first; exit 1 when any did (with "
    "--partial: or lacks).",
    "retry": "Ask again for the destinations of JOB that failed, and for those that a lost Redis took along.",
    "extend": "Add fields to the finished profiles of JOB; their themes stay, only what they lack is asked and paid.",
    "pause": "Ask nothing more of JOB until `themes resume`; what is under way is awaited and kept.",
    "resume": "Let JOB, which is paused or stopped at its budget, go on; what is done stays, nothing is paid twice.",
    "cancel": "Start nothing more of JOB; destinations that are done stay, answers that were paid for "
    "stay in the cache.",
    "tune": "Change settings of workers while they run, for those that start later too, until --reset.",
    "prices": "Show what MODEL costs at each endpoint, and where its prices are from; exit 1 when one is not known.",
    "teams": "Show what each team has spent of its budget, today and this month (UTC).",
    "cache": "Look into the shared cache of LLM completions, or empty it.",
    "doctor": "Check settings, Redis, LLM, database, machine and workers; exit 1 when anything fails.",
    "health": "Say whether a worker, consumer or dashboard of this host lives; exit 1 when none does.",
    "config": "Show the settings, or check them.",
    "worker": "Run one worker process in the foreground, and start it again when it dies.",
    "worker-memory": "Trace the memory of running workers: start, compare (after some minutes of work), stop.",
    "consumer": "Write results to the database until stopped.",
    "dashboard": "Serve the dashboard (Flower) until stopped.",
    "sandbox-llm": "Serve the sandbox LLM until Ctrl-C. The base URL goes to stdout, alone on its line.",
}  # fmt: skip
#: Under which words `themes --help` has them: a group begins with the verb that is named.
GROUPS: Final = {"demo": "Start", "watch": "Watch", "results": "Results", "pause": "Operate"}
#: Verbs whose files in the state directory are for this user alone.
PRIVATE: Final = frozenset({"demo", "up", "run", "worker", "consumer", "dashboard", "cache"})
#: What redis-py imports for metrics that nothing here turns on: two fifths of its own import.
UNUSED: Final = "opentelemetry"
#: What a shell completes as a file; whether it can be read is found out where it is opened.
FILE: Final = click.Path(readable=False)
#: Exit code of a program that Ctrl-C ended, as shells expect it.
INTERRUPTED: Final = 130


class Summaries(click.Group):
    """A group whose `--help` has the first paragraph of each command's help, not cut, and that knows a mistyped one."""

    def summaries(self) -> list[tuple[str, str]]:
        return [(name, cleandoc(verb.help or "").partition("\n\n")[0]) for name, verb in sorted(self.commands.items())]

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(self.summaries())

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if (name := args[0]) not in (known := self.list_commands(ctx)) and not name.startswith("-"):
            import difflib  # late: only what is mistyped needs it

            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean `{ctx.command_path} {near[0]}`?" if near else f"see `{ctx.command_path} --help`"
            raise ConfigError(f"no command {name!r}; {hint}")
        return super().resolve_command(ctx, args)


class Verbs(Summaries):
    def summaries(self) -> list[tuple[str, str]]:
        return list(VERBS.items())

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        group = ""
        for name, summary in self.summaries():
            group = GROUPS.get(name, group)
            groups.setdefault(group, []).append((name.ljust(max(map(len, VERBS))), summary))
        for group, verbs in groups.items():
            with formatter.section(group):
                formatter.write_dl(verbs)

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(VERBS)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list["CompletionItem"]:
        """Complete a verb out of the table: click itself would import every one of them at each press of a key."""
        from click.shell_completion import CompletionItem

        verbs = [CompletionItem(name, help=said) for name, said in VERBS.items() if name.startswith(incomplete)]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        if cmd_name in PRIVATE:
            os.umask(0o077)
        with _without(UNUSED):
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
    epilog="Example: themes demo",
    # `--help` is as wide as the terminal; of a pipe, COLUMNS says how wide it is.
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": sys.maxsize},
)
@click.option("--config", "config_file", metavar="FILE", type=FILE, help="Settings file (THEMES_CONFIG).")
@click.option("--debug", is_flag=True, help="Log in detail, and show tracebacks of errors.")
@click.version_option(package_name="smart-destination-themes")
def cli(config_file: str | None, *, debug: bool) -> None:
    """Find travel themes for destinations, in bulk, with a large language model."""
    if config_file:
        os.environ["THEMES_CONFIG"] = config_file
    if debug:
        os.environ["THEMES_DEBUG"] = "1"
    from tasks import logs  # late: `--help` logs nothing

    logs.configure("DEBUG" if debug else "INFO", "auto")


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Within the body a package that nothing has imported yet is not there."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # Python's own way of saying so
    try:
        yield
    finally:
        del sys.modules[package]


def settings_from(**overrides: object) -> "Settings":
    """Load the settings, with what the command line says on top; options that were not given are None."""
    from config.settings import load
    from tasks import logs

    given = {key.replace("__", "."): str(value) for key, value in overrides.items() if value is not None}
    settings = load(overrides=given)
    logs.configure(log_level(settings), settings.logging.format)
    _print_notices(settings)
    return settings


def _print_notices(settings: "Settings") -> None:
    from config.settings import NOTED

    if not os.environ.get(NOTED):
        for notice in settings.remarks:
            print(f"themes: note: {notice}", file=sys.stderr)
        os.environ[NOTED] = "1"


def log_level(settings: "Settings") -> str:
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
        import traceback

        traceback.print_exception(exc)
    from tasks.texts import cleaned

    # An error may repeat what stands in a file, in its name, or in an answer.
    print(f"themes: {cleaned(str(exc))}", file=sys.stderr)


if __name__ == "__main__":
    main()
