"""Rewrite a settings file's old names as today's, line by line: comments, order and formatting stay.

Only lines that have an old name change. One whose setting is in the same section today gets its name where it stands;
others go to the end of their section, with the comments above them. What has no meaning today becomes a comment. What
lines cannot say (braces, values over several lines) is refused with its place, and so is a result that would not mean
exactly what the file meant.
"""

import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Final

import yaml

from config import legacy
from config.errors import ConfigError
from config.settings import Settings, load, read_file
from config.values import is_null
from config.yaml_file import compose, pairs, read_text

#: What ends a line in YAML, and so what its marks count.
_LINE: Final = re.compile(r"[^\r\n\x85\u2028\u2029]*(?:\r\n|[\r\n\x85\u2028\u2029]|$)")
_INDENT: Final = "  "


def migrated(path: Path) -> str:
    """The text of a file with today's names; the same text when it has no old ones.

    Raises:
        ConfigError: the file is wrong, has something that cannot be rewritten, or would come to mean something else.
    """
    text = read_text(path)
    before = load(path=path, env={})
    found = _old_names(text, path.name)
    if not found:
        return text
    after = _Rewrite(text, path.name, found).text()
    if _old_names(after, path.name) or _meaning(after) != before:
        raise ConfigError(
            f"{path}: cannot be rewritten without a change of what it means; write the lines that "
            "`themes config check` names"
        )
    return after


def _old_names(text: str, name: str) -> legacy.Translation:
    _, found = read_file(compose(text, name), name, _raise)
    return found


def _raise(error: ConfigError) -> None:
    raise error


def _meaning(text: str) -> Settings:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "settings.yaml"
        file.write_bytes(text.encode())
        return load(path=file, env={})


class _Rewrite:
    """The lines of a file, and what becomes of each."""

    def __init__(self, text: str, name: str, found: legacy.Translation) -> None:
        self._name = name
        self._found = found
        self._lines = [line for line in _LINE.findall(text) if line]
        self._newline = "\r\n" if "\r\n" in text else "\n"
        #: Line number (from 0) -> the lines in its place.
        self._instead: dict[int, list[str]] = {}
        #: Section -> lines to add at its end.
        self._added: dict[str, list[str]] = defaultdict(list)
        self._sections = {entry.key: entry for entry in pairs(compose(text, name), name, _raise)}
        self._is_renamed = legacy.SECTION in self._sections and legacy.TODAY not in self._sections

    def text(self) -> str:
        self._rename_sections()
        for line in self._found.lines:
            if line.olds:
                self._write(line)
        for old, key, _ in self._found.beaten:
            self._comment_out(old, f"passed over: {key} wins")
        for old, why in self._found.dropped:
            self._comment_out(old, why)
        return self._joined()

    # --- one key ------------------------------------------------------------------------------------------

    def _write(self, line: legacy.Line) -> None:
        """Today's line instead of the old one, there or in its own section; other old keys that it stands for go."""
        old, *others = line.olds
        section, _, name = line.key.partition(".")
        rest = self._rest(old)
        if isinstance(line.source, str):
            rest = f": {line.source}{self._remark(old)}"
        written = [f"{name}{rest}"]
        if line.key == f"{legacy.TODAY}.llm_connection_pool_size":
            written += [f"{one.key.partition('.')[2]}: {one.text}" for one in self._found.lines if not one.olds]
        number = self._number(old)
        if section == legacy.TODAY and self._stays(old):
            self._instead[number] = [f"{self._indent(old)}{one}{self._newline}" for one in written]
        else:
            above = self._take_comments(number)
            self._instead[number] = []
            self._added[section] += [*above, *written]
        for other in others:
            remark = self._remark(other).strip()
            self._instead[self._number(other)] = [f"{self._indent(other)}{remark}{self._newline}"] if remark else []

    def _comment_out(self, old: legacy.Old, why: str) -> None:
        remark = self._remark(old)
        value = "***" if "password" in old.name else " ".join(old.text.split()) if _is_scalar(old) else ""
        said = f"# {old.name}: {value} ({why}){' ' if remark else ''}{remark.strip()}"
        self._instead[self._number(old)] = [f"{self._indent(old)}{said}{self._newline}"]

    def _stays(self, old: legacy.Old) -> bool:
        """Whether its place is within `performance_optimization`, now or when its section has been renamed."""
        return self._is_renamed or not old.name.startswith(f"{legacy.SECTION}.")

    def _number(self, old: legacy.Old) -> int:
        """Its line, from 0.

        Raises:
            ConfigError: it shares that with something else, or goes on in the next one.
        """
        key, value = old.entry.key_node, old.entry.value
        number = int(key.start_mark.line)
        before = self._lines[number][: key.start_mark.column]
        end = int(value.end_mark.line)
        after = self._after(old).strip()
        is_alone = not before.strip() and (end == number or is_null(value)) and (not after or after.startswith("#"))
        if not is_alone:
            raise ConfigError(
                f"{old.entry.place}: {old.name} cannot be rewritten here; write it on one line, as `key: value`"
            )
        return number

    def _rest(self, old: legacy.Old) -> str:
        """Its line from the colon on, as it is."""
        line: str = self._lines[self._number(old)]
        return line[old.entry.key_node.end_mark.column :].rstrip("\r\n\x85\u2028\u2029")

    def _after(self, old: legacy.Old) -> str:
        """What stands behind its value."""
        key, value = old.entry.key_node, old.entry.value
        line: str = self._lines[key.start_mark.line]
        if value.end_mark.line != key.start_mark.line or is_null(value):
            return line[key.end_mark.column :].lstrip(" \t").removeprefix(":").lstrip(" \t").removeprefix("null")
        return line[int(value.end_mark.column) :]

    def _remark(self, old: legacy.Old) -> str:
        """The comment behind its value, with the blanks before it."""
        return self._after(old).rstrip() if "#" in self._after(old) else ""

    def _indent(self, old: legacy.Old) -> str:
        """That of its section: what stood within a section of its own moves out."""
        column = int(old.entry.key_node.start_mark.column)
        if old.name.count(".") > 1:
            column = self._sections[legacy.TODAY].value.value[0][0].start_mark.column
        return " " * column

    def _take_comments(self, number: int) -> list[str]:
        """The comments right above a line, which move with it."""
        first = number
        while first > 0 and self._lines[first - 1].lstrip().startswith("#") and first - 1 not in self._instead:
            first -= 1
        for taken in range(first, number):
            self._instead[taken] = []
        return [line.strip() for line in self._lines[first:number]]

    # --- sections -----------------------------------------------------------------------------------------

    def _rename_sections(self) -> None:
        if legacy.SECTION in self._sections:
            entry = self._sections[legacy.SECTION]
            number = self._header(entry.key_node, entry.value)
            rest = self._lines[number][entry.key_node.end_mark.column :]
            self._instead[number] = [f"{legacy.TODAY}{rest}"] if self._is_renamed else self._remark_of(number, "")
        if legacy.TODAY in self._sections and not is_null(self._sections[legacy.TODAY].value):
            today = self._sections[legacy.TODAY]
            for entry in pairs(today.value, self._name, _raise):
                if entry.key in legacy.NESTED:
                    number = self._header(entry.key_node, entry.value)
                    indent = " " * entry.key_node.start_mark.column
                    self._instead[number] = self._remark_of(number, indent)
                    self._move_out(number, entry.value, indent)

    def _move_out(self, header: int, node: yaml.Node, indent: str) -> None:
        """The comments within a nested section move out with its keys."""
        for number in range(header + 1, _last_line(node) + 1):
            if self._lines[number].lstrip().startswith("#"):
                self._instead[number] = [f"{indent}{self._lines[number].lstrip()}"]

    def _header(self, key: yaml.ScalarNode, value: yaml.Node) -> int:
        """The line of a section that is to be rewritten.

        Raises:
            ConfigError: its keys stand in braces.
        """
        number = int(key.start_mark.line)
        is_block = is_null(value) or (isinstance(value, yaml.MappingNode) and not value.flow_style)
        if not is_block or (not is_null(value) and value.start_mark.line == number):
            raise ConfigError(
                f"{self._name}:{number + 1}: {key.value} is written in braces; write one key a line, then migrate"
            )
        return number

    def _remark_of(self, number: int, indent: str) -> list[str]:
        """The comment of a section's line, when the line goes."""
        _, found, remark = self._lines[number].partition("#")
        return [f"{indent}#{remark}"] if found else []

    def _joined(self) -> str:
        """The lines, with those that were added at the ends of their sections."""
        after: dict[int, list[str]] = {}
        behind: list[str] = []
        for section, added in self._added.items():
            entry = self._sections.get(section)
            if entry is None:
                lines = [f"{section}:", *(f"{_INDENT}{one}" for one in added)]
                behind += [self._newline, *(f"{one}{self._newline}" for one in lines)]
                continue
            number = self._header(entry.key_node, entry.value)
            column = 2 if is_null(entry.value) else entry.value.value[0][0].start_mark.column
            last = number if is_null(entry.value) else max(number, _last_line(entry.value))
            after[last] = [f"{' ' * column}{one}{self._newline}" for one in added]
        out: list[str] = []
        for number, line in enumerate(self._lines):
            out += self._instead.get(number, [line])
            if number in after:
                out = _ended(out, self._newline) + after[number]
        return "".join(_ended(out, self._newline) + behind if behind else out)


def _ended(lines: list[str], newline: str) -> list[str]:
    """Lines of which the last one is ended too."""
    if lines and not lines[-1].endswith(("\r", "\n", "\x85", "\u2028", "\u2029")):
        lines[-1] += newline
    return lines


def _is_scalar(old: legacy.Old) -> bool:
    return isinstance(old.entry.value, yaml.ScalarNode)


def _last_line(node: yaml.Node) -> int:
    """The last line that a node has something on; the marks of a block end where the next thing begins."""
    children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    is_block = isinstance(node, yaml.CollectionNode) and not node.flow_style
    if is_block and children:
        return max(_last_line(child) for child in children)
    end = node.end_mark
    return int(end.line - (1 if end.column == 0 and end.line > node.start_mark.line else 0))
