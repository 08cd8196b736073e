"""Settings of an environment, on top of a file: which file `THEMES_ENV` names.

Ours lie in `config/environments`; a user's own lie in `environments` beside the file that `THEMES_CONFIG` names, and
come first.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from config.errors import ConfigError
from config.values import shown

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def overlay(name: str, folders: Sequence[Path]) -> Path:
    """The file of an environment, from the first folder that has it. Raises ConfigError."""
    if _NAME.fullmatch(name):
        for folder in folders:
            path = folder / f"{name}.yaml"
            if path.is_file():
                return path
    known = names(folders)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"environment THEMES_ENV: no overlay {shown(name)}; there are: {', '.join(known)} "
        f"(own ones: environments/NAME.yaml beside the settings file){hint}"
    )


def names(folders: Sequence[Path]) -> list[str]:
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml") if _NAME.fullmatch(path.stem)})
