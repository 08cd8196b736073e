"""A YAML file as nodes with line numbers: a safe loader, no aliases, unique keys, a size cap.

What is wrong is reported rather than raised, so that one reading finds all of it; the caller decides whether to go on.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import yaml

from config.errors import ConfigError
from config.values import safe_node, shown

#: A settings file larger than this is something else.
MAX_FILE_BYTES: Final = 1024 * 1024

Report = Callable[[ConfigError], None]


class Entry(NamedTuple):
    """One line of a mapping: its key, its value, and `file:line`."""

    key: str
    value: yaml.Node
    place: str


def read_text(path: Path) -> str:
    """The text of a settings file, without its byte order mark. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as exc:
        why = getattr(exc, "strerror", None) or exc
        raise ConfigError(
            f"{path}: cannot be read ({why}); THEMES_CONFIG or the command line names this settings file"
        ) from exc
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes; this is no settings file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8 text (byte {exc.start})") from exc


@lru_cache(maxsize=4)
def compose(text: str, name: str) -> yaml.Node:
    """The root node of a text, or an empty mapping; `name` stands for it in messages. Raises ConfigError.

    The same node for the same text, which takes 30 ms to read; no caller changes a node.
    """
    try:
        return safe_node(text, lambda what, line: ConfigError(f"{name}:{line}: {what}"))
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise ConfigError(f"{name}:{line}: not valid YAML: {exc.problem}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{name}: not valid settings: nested too deeply") from exc
    except yaml.YAMLError as exc:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(exc).split())}") from exc


def pairs(node: yaml.Node, name: str, report: Report) -> Iterator[Entry]:
    """Each line of a mapping, the first where a key stands twice. `name` is the file's, for places."""
    line = node.start_mark.line + 1 if node.start_mark else 1
    if not isinstance(node, yaml.MappingNode):
        report(ConfigError(f"{name}:{line}: expected `key: value` lines"))
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        here = key.start_mark.line + 1
        place = f"{name}:{here}"
        if not isinstance(key, yaml.ScalarNode):
            report(ConfigError(f"{place}: a key must be a plain word"))
        elif key.value in seen:
            report(ConfigError(f"{place}: {shown(key.value)} stands already in line {seen[key.value]}; keep one"))
        else:
            seen[key.value] = here
            yield Entry(key.value, value, place)
