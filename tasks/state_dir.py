"""The state directory is its user's alone: what lies in it is trusted (addresses with passwords, answers, books)."""

import os
import stat
from pathlib import Path
from typing import Final

from tasks.errors import ConfigError

#: Bits that let others write.
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def check_private(path: Path) -> None:
    """Refuse a directory or file that another user owns or may write; what does not exist is fine.

    Raises:
        ConfigError: with the command that mends it.
    """
    try:
        found = path.stat()
    except OSError:
        return  # whoever uses it says why it cannot be used
    if found.st_uid not in {os.getuid(), 0}:
        raise ConfigError(
            f"state_dir: {path} belongs to another user ({found.st_uid}), who could put there what he likes: choose "
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
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"state_dir: {folder} cannot be written ({exc.strerror})") from exc
    check_private(folder)
