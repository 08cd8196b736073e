"""What a setting's text means: numbers, booleans, prices.

One parser for a YAML scalar, an environment variable and an option. YAML 1.1's types (`12:30` is 750, `NO` is false) do
not apply, because only the text of a node is read.
"""

import base64
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field
from types import MappingProxyType
from typing import Any, Final, get_args

import yaml

from config.errors import ConfigError

#: Lists and mappings within each other, at most.
MAX_DEPTH: Final = 64
#: Characters of a wrong value that an error repeats.
SHOWN_CHARACTERS: Final = 60
_PRICE_SHAPE: Final = "`model: {input_usd: 0.15, output_usd: 0.60}` per million tokens"
_NEEDED: Final = frozenset({"input_usd", "output_usd"})
_CACHED: Final = frozenset({"cached_input_usd", "cache_write_usd"})
_SECRET_ARGUMENT: Final = re.compile(r"(?i)([?&][^=&]*(?:password|secret|token|key)[^=&]*=)[^&]*")
_BOOLEANS: Final = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip


class Secret(str):
    """A value whose `repr` is asterisks, so that no log or traceback of settings shows it. `str` is the value."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class SecretAddress(Secret):
    """An address that is a secret itself, as those of chat services: only its host is shown."""

    __slots__ = ()


def setting(default: Any, *, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "choices": choices})


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens. What a provider's cache has costs as any input where nothing else is said."""

    input_usd: float
    output_usd: float
    cached_input_usd: float | None = None
    cache_write_usd: float | None = None


#: Before a signing key that is written in base64.
BASE64_SECRET: Final = "whsec_"  # noqa: S105  # no secret itself


def signing_key(secret: str) -> bytes:
    """The key that a secret means. Raises ValueError: it is not `BASE64_SECRET` and base64 of a key behind that."""
    key = base64.b64decode(secret.removeprefix(BASE64_SECRET), validate=True)
    if not key or not secret.startswith(BASE64_SECRET):
        raise ValueError(f"expected {BASE64_SECRET} and base64 of a key")
    return key


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
    text = without_password(text)
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…")


def without_password(text: str) -> str:
    """A URL without its password; other text as it is.

    Cut by hand: a password that was not escaped may have any character.
    """
    scheme, found, rest = text.partition("://")
    if not found:
        return text
    who, at, where = rest.rpartition("@")
    user = who.partition(":")[0] if ":" in who else ""
    return _SECRET_ARGUMENT.sub(r"\1***", f"{scheme}://{user}:***@{where}" if at else text)


def convert(key: str, type_: type, text: str, place: str) -> Any:
    """The value of a type that a text means. Raises ConfigError: it means none."""
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


def convert_within(key: str, item: Field[Any], type_: Any, text: str, place: str) -> Any:
    """The value that a text means for a setting of this type. Raises ConfigError: none, or one out of its bounds."""
    value = convert(key, next((one for one in get_args(type_) if one is not type(None)), type_), text, place)
    choices, low, high = (item.metadata.get(name) for name in ("choices", "low", "high"))
    if choices and value not in choices:
        raise ConfigError(f"{key}: expected one of {', '.join(choices)}, got {shown(text)} ({place})")
    if (low is not None and value < low) or (high is not None and value > high):
        raise ConfigError(f"{key}: expected a number from {low:g} to {high:g}, got {shown(text)} ({place})")
    return value


def node_of(key: str, source: yaml.Node | str, place: str) -> yaml.Node:
    """The node of a structured value, whose text may come from the environment; nothing there is an empty mapping."""
    if not isinstance(source, str):
        return source
    try:
        return safe_node(source, lambda what, _: ConfigError(f"{key}: {what} ({place})"))
    except (yaml.YAMLError, RecursionError) as exc:
        raise ConfigError(f"{key}: not valid YAML ({place})") from exc


class _Loader(yaml.SafeLoader):
    """Refuses what multiplies (aliases) or costs its square (nesting) before it is in the tree."""

    def __init__(self, text: str, error: Callable[[str, int], ConfigError]) -> None:
        super().__init__(text)
        self._error = error
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]  # not typed upstream
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise self._error("YAML aliases are not allowed; write the value out", line)
        if self._depth >= MAX_DEPTH and isinstance(event, yaml.CollectionStartEvent):
            raise self._error("nested too deeply", line)
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def safe_node(text: str, error: Callable[[str, int], ConfigError]) -> yaml.Node:
    """The root node of a YAML text; an empty mapping when it has nothing but comments.

    Raises:
        ConfigError: what `error` makes of an alias or of deep nesting, and its line.
        yaml.YAMLError: it is no YAML.
    """
    loader = _Loader(text, error)
    try:
        return loader.get_single_node() or yaml.MappingNode("tag:yaml.org,2002:map", [])
    finally:
        loader.dispose()


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
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{key}: expected {shape} ({place})")
    return str(node.value).strip()


def parse_prices(key: str, source: yaml.Node | str, place: str) -> Prices:
    """`model: {input_usd: per million tokens, output_usd: per million tokens}`, from a file or as YAML text."""
    prices: dict[str, Price] = {}
    for model, node in members(key, node_of(key, source, place), place, _PRICE_SHAPE).items():
        texts = members(key, node, place, _PRICE_SHAPE)
        if not _NEEDED <= set(texts) <= _NEEDED | _CACHED:
            raise ConfigError(f"{key}: expected {_PRICE_SHAPE} ({place})")
        usd = {name: _usd(f"{key}.{model}.{name}", text, place) for name, text in texts.items()}
        prices[model] = Price(**usd)
    return MappingProxyType(prices)


def _usd(key: str, node: yaml.Node, place: str) -> float:
    number: float = convert(key, float, scalar(key, node, place, "a number"), place)
    if number < 0:
        raise ConfigError(f"{key}: a price is not below 0 ({place})")
    return number
