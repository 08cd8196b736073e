"""The state directory is its user's alone: what lies in it is trusted (addresses with passwords, answers, books).

A stack runs in one state directory; other commands find it there.
"""

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tasks.errors import ConfigError

#: What `themes up` holds open, and locks, while it runs in a state directory.
UP_LOCK: Final = "up.lock"
_PROCESSES: Final = Path("/proc")

_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def check_private(path: Path) -> None:
    """Refuse a directory or file that another user owns or may write; what does not exist is fine.

    Raises:
        ConfigError: with the command that mends it.
    """
    try:
        found = path.stat()
    except OSError:
        return  # its user reports why it cannot be used
    if found.st_uid not in {os.getuid(), 0}:
        raise ConfigError(
            f"state_dir: {path} belongs to another user ({found.st_uid}), which could plant files there: choose "
            "another with THEMES_STATE_DIR, or make it yours with chown"
        )
    if found.st_mode & _OTHERS_WRITE:
        raise ConfigError(
            f"state_dir: {path} may be written by other users: chmod go-w {path}, or choose another with "
            "THEMES_STATE_DIR"
        )


def make_private(folder: Path) -> None:
    """Make a directory that only this user reads; one that is there is checked.

    Raises:
        ConfigError: it cannot be made, or is not private.
    """
    with writing_in(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder)


@contextlib.contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Within the body, an OSError becomes the ConfigError that a state directory cannot be written."""
    try:
        yield
    except OSError as exc:
        raise ConfigError(f"state_dir: {folder} cannot be written ({exc.strerror})") from exc


def running_stacks() -> Iterator[tuple[Path, int]]:
    """State directories in which this user's `themes up` runs, each with its process; none where /proc is missing."""
    for folder in _PROCESSES.glob("[0-9]*/fd"):
        # Other users' processes show nothing, and one may end while it is looked at.
        with contextlib.suppress(OSError):
            for link in folder.iterdir():
                target = Path(link.readlink())
                if target.name == UP_LOCK and target.read_text("utf-8", "replace").strip() == folder.parent.name:
                    yield target.parent, int(folder.parent.name)


def elsewhere(words: str) -> str:
    """`words`, the mend where no stack is found, behind the lines that reach those which run elsewhere."""
    found = [
        f"`themes up` runs in {folder} (process {pid}): `export THEMES_STATE_DIR={shlex.quote(str(folder))}` finds it"
        for folder, pid in running_stacks()
        if pid != os.getpid()
    ]
    return "; or ".join([*found, words])
