"""Files that a user names with `-o`, and the question before something is dropped."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

import click

from config.errors import ConfigError
from scripts.main import FILE

F = TypeVar("F", bound=Callable[..., Any])


def output_options(command: F) -> F:
    for option in (
        click.option("--force", is_flag=True, help="With -o: replace a file that exists."),
        click.option("-o", "--output", type=FILE, metavar="FILE", help="Write there instead of to standard output."),
    ):
        command = option(command)
    return command


@contextlib.contextmanager
def destination_of(output: str | None, *, force: bool, binary: bool = False) -> Iterator[IO[Any]]:
    """Where to write; without `output`, standard output. A new file replaces an older one when everything is in it.

    A device and a pipe are written to directly. Raises ConfigError: the file exists, or cannot be written.
    """
    if output is None:
        yield sys.stdout
        return
    try:
        target = Path(output)
        if own := _own_stream(target):
            yield own.buffer if binary else own
        elif target.exists() and not target.is_file():
            # A device or a pipe has no other name beside it.
            with _opened(target, binary=binary) as file:
                yield file
        else:
            target = target.resolve()
            _refuse_existing(target, output, force=force)
            with _beside(target, binary=binary) as (file, name):
                yield file
                file.flush()
                os.fsync(file.fileno())
                # Another process may have written it meanwhile.
                _refuse_existing(target, output, force=force)
                Path(name).replace(target)
    except BrokenPipeError:
        raise  # the reader has seen enough: not an error (`scripts.main`)
    except OSError as exc:
        raise ConfigError(f"{output}: cannot be written ({exc.strerror}); name another file with -o") from exc


def confirm(question: str) -> bool:
    """Ask the user on the terminal; raises ConfigError where standard input is none, so that `--yes` is needed."""
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} Standard input is no terminal: add --yes")
    return click.confirm(question, err=True)


def _own_stream(target: Path) -> Any:
    """Our standard output or error, where the file is just that: /dev/stdout may lead to a file of any name."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        with contextlib.suppress(OSError):
            if os.path.samestat(target.stat(), os.fstat(number)):
                return stream
    return None


def _refuse_existing(target: Path, output: str, *, force: bool) -> None:
    if not force and target.exists():
        raise ConfigError(f"{output}: the file exists; name another with -o, or replace it with --force")


def _opened(place: Path | int, *, binary: bool) -> IO[Any]:
    return open(place, "wb") if binary else open(place, "w", encoding="utf-8", newline="")  # noqa: PTH123


@contextlib.contextmanager
def _beside(target: Path, *, binary: bool) -> Iterator[tuple[IO[Any], str]]:
    """An open file in the target's folder; what has no other name by the end of the body is deleted."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with _opened(handle, binary=binary) as file:
            Path(name).chmod(0o666 & ~_umask())
            yield file, name
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
