"""What a setting's text means: numbers, booleans, prices.

One parser for every source: a YAML scalar's text, an environment variable's, an option's. YAML 1.1's own ideas (`12:30`
is 750, `NO` is false even for a name) have no say, because only the text of a node is read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import yaml

from config.errors import ConfigError

#: Characters of a wrong value that an error repeats.
SHOWN_CHARACTERS: Final = 60
_PRICE_SHAPE: Final = "`model: {input_usd: 0.15, output_usd: 0.60}` per million tokens"
_BOOLEANS: Final = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip


class Secret(str):
    """A value whose `repr` is asterisks, so that no log or traceback of settings shows it. `str` is the value."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input_usd: float
    output_usd: float


Prices = Mapping[str, Price]


def is_null(source: yaml.Node | str) -> bool:
    """Whether nothing stands there; a quoted word is a word."""
    if isinstance(source, str):
        text = source
    elif isinstance(source, yaml.ScalarNode) and source.style is None:
        text = str(source.value)
    else:
        return False
    return text.strip() in {"", "null", "~", "Null", "NULL"}


def shown(text: str) -> str:
    """A wrong value, for a sentence."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…")


def convert(key: str, type_: type, text: str, place: str) -> Any:
    """The value of a type that a text means.

    Raises:
        ConfigError: it means none.
    """
    if type_ is bool:
        if text.lower() not in _BOOLEANS:
            raise ConfigError(f"{key}: expected true or false, got {shown(text)} ({place})")
        return _BOOLEANS[text.lower()]
    if type_ not in {int, float}:
        return type_(text)
    try:
        number = type_(text.replace("_", ""))
    except ValueError as exc:
        kind = "a whole number" if type_ is int else "a number"
        raise ConfigError(f"{key}: expected {kind}, got {shown(text)} ({place})") from exc
    if isinstance(number, float) and not math.isfinite(number):
        raise ConfigError(f"{key}: expected a finite number, got {shown(text)} ({place})")
    return number


def node_of(key: str, source: yaml.Node | str, place: str) -> yaml.Node:
    """The node of a structured value, whose text may come from the environment; nothing there is an empty mapping."""
    if not isinstance(source, str):
        return source
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(source, Loader=yaml.SafeLoader)):
            raise ConfigError(f"{key}: YAML aliases are not allowed; write the value out ({place})")
        return yaml.compose(source, Loader=yaml.SafeLoader) or yaml.MappingNode("", [])
    except (yaml.YAMLError, RecursionError) as exc:
        raise ConfigError(f"{key}: not valid YAML ({place})") from exc


def members(key: str, node: yaml.Node, place: str, shape: str) -> dict[str, yaml.Node]:
    """The members of a mapping whose keys are plain words, each standing once; `shape` says what was expected."""
    expected = ConfigError(f"{key}: expected {shape} ({place})")
    if not isinstance(node, yaml.MappingNode):
        raise expected
    found: dict[str, yaml.Node] = {}
    for name, value in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise expected
        if name.value in found:
            raise ConfigError(f"{key}: {name.value!r} stands twice; keep one ({place})")
        found[name.value] = value
    return found


def scalar(key: str, node: yaml.Node, place: str, shape: str = "a single value") -> str:
    """The text of a plain value."""
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{key}: expected {shape} ({place})")
    return str(node.value).strip()


def parse_prices(key: str, source: yaml.Node | str, place: str) -> Prices:
    """`model: {input_usd: per million tokens, output_usd: per million tokens}`, from a file or as YAML text."""
    prices: dict[str, Price] = {}
    for model, node in members(key, node_of(key, source, place), place, _PRICE_SHAPE).items():
        texts = members(key, node, place, _PRICE_SHAPE)
        if set(texts) != {"input_usd", "output_usd"}:
            raise ConfigError(f"{key}: expected {_PRICE_SHAPE} ({place})")
        usd = {name: _usd(f"{key}.{model}.{name}", text, place) for name, text in texts.items()}
        prices[model] = Price(**usd)
    return MappingProxyType(prices)


def _usd(key: str, node: yaml.Node, place: str) -> float:
    number: float = convert(key, float, scalar(key, node, place, "a number"), place)
    if number < 0:
        raise ConfigError(f"{key}: a price is not below 0 ({place})")
    return number
