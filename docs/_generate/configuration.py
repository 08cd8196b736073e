"""Write the tables of docs/reference/configuration.md from config.yaml, the settings and their old names.

python docs/_generate/configuration.py
"""

import re
from pathlib import Path
from typing import Any

from config import legacy
from config.settings import DEFAULT_FILE, KNOWN_VARIABLES, known_keys

PAGE = Path(__file__).parents[1] / "reference" / "configuration.md"
_TABLES = re.compile(r"(<!-- (\w+): made by docs/_generate/configuration.py -->\n).*?(<!-- end -->)", re.DOTALL)
_KINDS = {
    "int": "whole number", "float": "number", "bool": "true or false", "str": "text", "Secret": "text, masked",
    "SecretAddress": "text, masked",
}  # fmt: skip


def meanings(text: str) -> dict[str, str]:
    """What the comments above each key of config.yaml say of it."""
    found: dict[str, str] = {}
    section, said = "", []
    for line in text.splitlines():
        if not line.strip():
            said = []
        elif line.lstrip().startswith("#"):
            said.append(line.lstrip(" #"))
        elif key := re.match(r"( *)(\w+):", line):
            name = key[2]
            if not key[1]:
                section = name
            if key[1] == "  " or name == "state_dir":
                found[f"{section}.{name}" if key[1] else name] = " ".join(said)
            said = []
    return found


def shipped(text: str) -> dict[str, str]:
    """The default of each key as config.yaml writes it."""
    values: dict[str, str] = {}
    section = ""
    for line in text.splitlines():
        if top := re.match(r"(\w+): *(.*)", line):
            section = top[1]
            if top[2]:
                values[section] = top[2]
        elif key := re.match(r"  (\w+): *(.*)", line):
            values[f"{section}.{key[1]}"] = key[2]
        elif inner := re.match(r"    (\w+: .*)", line):
            values[next(reversed(values))] = f"{{{inner[1]}}}"
    return values


def allowed(key: str) -> str:
    """What a setting may be, in words."""
    item, type_ = known_keys()[key]
    if choices := item.metadata.get("choices"):
        return ", ".join(choices)
    names = [getattr(one, "__name__", str(one)) for one in getattr(type_, "__args__", [type_])]
    if "Mapping" in str(type_):
        return "mapping"
    kind = next((_KINDS.get(name, "path" if "Path" in name else name) for name in names), "")
    low, high = item.metadata.get("low"), item.metadata.get("high")
    bounds = "" if low is None else f", {_number(low)} to {_number(high)}"
    return f"{kind}{bounds}{' or empty' if 'NoneType' in names else ''}"


def settings_table() -> str:
    """Every setting by section."""
    text = DEFAULT_FILE.read_text()
    said, defaults = meanings(text), shipped(text)
    variables = {key: variable for variable, key in KNOWN_VARIABLES.items()}
    lines, section = [], ""
    for key in known_keys():
        head, _, name = key.rpartition(".")
        if head != section or not lines:
            section = head
            lines += [f"\n### `{head}`\n" if head else "", "| key | default | may be | meaning |", "|---|---|---|---|"]
        default = defaults[key] if defaults[key] != "null" else "empty"
        known = f" ({variables[key]})" if key in variables and variables[key] not in said[key] else ""
        lines.append(f"| `{name}` | `{default}` | {allowed(key)} | {_cell(said[key])}{known} |")
    return "\n".join(lines).strip() + "\n"


def old_table() -> str:
    """Every old name and what it means today."""
    lines = ["| old name | today |", "|---|---|"]
    rows: dict[str, Any] = {name: f"`{key}`" for name, key in legacy.RENAMED.items()}
    rows |= {name: words for name, (words, _) in legacy.OTHERWISE.items()}
    rows |= {name: f"nothing: {why}" for name, why in legacy.MEANINGLESS.items()}
    lines += [f"| `{name}` | {_cell(rows[name])} |" for name in sorted(rows)]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with its tables made anew."""
    tables = {"settings": settings_table, "old": old_table}
    return _TABLES.sub(lambda found: f"{found[1]}\n{tables[found[2]]()}\n{found[3]}", text)


def _number(value: float) -> str:
    return f"{value:_g}" if isinstance(value, float) else f"{value:_}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
