"""LLM endpoints beside each other, which model does what, and what else every request carries.

Keys are named, not written: `api_key_env` says which variable of the worker's environment holds one, `api_key_file`
which file. They are read where requests are made, so that a machine which only enqueues needs none of them.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Final, get_type_hints

import yaml

from config.errors import ConfigError
from config.teams import TeamBudgets, parse_team_budgets
from config.values import Prices, Secret, convert_within, is_null, members, node_of, parse_prices, scalar, setting

_ENDPOINT_SHAPE: Final = "`name: {base_url: https://…/v1, api_key_env: VARIABLE, weight: 1, models: [model]}`"
_ROLE_SHAPE: Final = "`role: model`, for instance `analyse: a-small-model`"
_HEADERS_SHAPE: Final = "`name: value`, for instance `{HTTP-Referer: https://example.org}`"
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_OWN_HEADERS: Final = frozenset({"host", "content-length", "content-type", "transfer-encoding", "accept-encoding"})
_BODY_SHAPE: Final = "`field: value`, for instance `{top_p: 0.9, seed: 7}`"
#: Fields of a request that are made from the prompt and from other settings.
_OWN_FIELDS: Final = {
    "model": "llm.model or llm.roles",
    "messages": "the prompt files",
    "response_format": "nothing: it is negotiated",
    "max_tokens": "`max_tokens` of the prompt files",
    "max_completion_tokens": "`max_tokens` of the prompt files",
    "temperature": "llm.temperature",
    "stream": "nothing: answers are read whole",
    "n": "nothing: one answer is asked for",
}


#: At which tier of service calls are bought; flex waits for capacity, priority does not wait for others, batch is
#: answered within hours (`workers.llm.batches`).
STANDARD, FLEX, PRIORITY, BATCH = "standard", "flex", "priority", "batch"
TIERS: Final = (STANDARD, FLEX, PRIORITY, BATCH)


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """One of several OpenAI-compatible servers.

    `models` maps the names that prompts ask for to the names that this server knows them by; empty: it serves every
    model under its own name. `weight` is its share of the requests beside the others'.
    """

    base_url: Secret | None = None
    api_key: Secret | None = None
    api_key_env: str | None = None
    api_key_file: str | None = None
    weight: float = setting(1.0, low=0.001, high=1_000_000)
    requests_per_minute: float | None = setting(None, low=0.1, high=100_000_000)
    request_burst: int | None = setting(None, low=1, high=10_000_000)
    tokens_per_minute: float | None = setting(None, low=1, high=100_000_000_000)
    tier: str | None = setting(None, choices=TIERS)
    models: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    headers: Mapping[str, Secret] = field(default_factory=lambda: MappingProxyType({}))


_FIELDS: Final = {item.name: item for item in fields(EndpointSettings)}
_TYPES: Final = get_type_hints(EndpointSettings)
Endpoints = Mapping[str, EndpointSettings]
Roles = Mapping[str, str]
Body = Mapping[str, Any]
Headers = Mapping[str, Secret]


def parse_endpoints(key: str, source: yaml.Node | str, place: str) -> Endpoints:
    named = members(key, node_of(key, source, place), place, _ENDPOINT_SHAPE)
    return MappingProxyType({name: _endpoint(f"{key}.{name}", node, place) for name, node in named.items()})


def _endpoint(key: str, node: yaml.Node, place: str) -> EndpointSettings:
    parts = members(key, node, place, _ENDPOINT_SHAPE)
    if unknown := parts.keys() - _FIELDS.keys():
        raise ConfigError(f"{key}: unknown setting {min(unknown)!r}; known: {', '.join(_FIELDS)} ({place})")
    found: dict[str, Any] = {}
    for name, value in parts.items():
        if name == "models":
            found[name] = _models(f"{key}.models", value, place)
        elif name == "headers":
            found[name] = parse_headers(f"{key}.headers", value, place)
        elif not is_null(value):
            text = scalar(f"{key}.{name}", value, place)
            found[name] = convert_within(f"{key}.{name}", _FIELDS[name], _TYPES[name], text, place)
    if not str(found.get("base_url", "")).startswith(("http://", "https://")):
        raise ConfigError(f"{key}.base_url: expected http://… or https://…, up to and including /v1 ({place})")
    if sum(name in found for name in ("api_key", "api_key_env", "api_key_file")) > 1:
        raise ConfigError(f"{key}: name its key once: api_key_env, api_key_file or api_key ({place})")
    return EndpointSettings(**found)


def _models(key: str, node: yaml.Node, place: str) -> Mapping[str, str]:
    """`[a, b]`, or `{a: name of a at this server}`."""
    if isinstance(node, yaml.SequenceNode):
        names = [scalar(key, item, place, "a list of models") for item in node.value]
        return MappingProxyType({name: name for name in names})
    named = members(key, node, place, "`[model, …]` or `{model: its name there}`")
    return MappingProxyType({name: scalar(f"{key}.{name}", value, place) for name, value in named.items()})


def _texts(key: str, source: yaml.Node | str, place: str, shape: str) -> dict[str, str]:
    named = members(key, node_of(key, source, place), place, shape)
    return {name: scalar(f"{key}.{name}", node, place, shape) for name, node in named.items()}


def parse_roles(key: str, source: yaml.Node | str, place: str) -> Roles:
    roles = _texts(key, source, place, _ROLE_SHAPE)
    if not all(roles.values()):
        raise ConfigError(f"{key}: expected {_ROLE_SHAPE} ({place})")
    return MappingProxyType(roles)


def parse_headers(key: str, source: yaml.Node | str, place: str) -> Headers:
    headers = _texts(key, source, place, _HEADERS_SHAPE)
    for name, text in headers.items():
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _OWN_HEADERS:
            raise ConfigError(f"{key}: {name!r} is no header that can be set here ({place})")
        if not all(" " <= char <= "~" for char in text):
            raise ConfigError(f"{key}.{name}: has a character that no header takes, such as a line break ({place})")
    return MappingProxyType({name: Secret(text) for name, text in headers.items()})


def parse_body(key: str, source: yaml.Node | str, place: str) -> Body:
    named = members(key, node_of(key, source, place), place, _BODY_SHAPE)
    for name in named.keys() & _OWN_FIELDS.keys():
        raise ConfigError(f"{key}: {name!r} is set by {_OWN_FIELDS[name]} ({place})")
    try:
        return MappingProxyType({name: _json(f"{key}.{name}", node, place) for name, node in named.items()})
    except RecursionError as exc:
        raise ConfigError(f"{key}: nested too deeply ({place})") from exc


def _json(key: str, node: yaml.Node, place: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {
            name: _json(f"{key}.{name}", value, place) for name, value in members(key, node, place, "an object").items()
        }
    if isinstance(node, yaml.SequenceNode):
        return [_json(key, item, place) for item in node.value]
    if is_null(node):
        return None
    text = scalar(key, node, place)
    if node.style is not None:  # type: ignore[attr-defined]  # quoted: a text
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: expected a finite number ({place})")
    return value


def public_endpoint(endpoint: EndpointSettings) -> dict[str, Any]:
    """What is set of an endpoint, as JSON knows it, without its key."""
    hidden = {"api_key": endpoint.api_key and "***", "headers": dict.fromkeys(endpoint.headers, "***")}
    parts = {name: hidden.get(name, getattr(endpoint, name)) for name in _FIELDS} | {"models": dict(endpoint.models)}
    return {name: value for name, value in parts.items() if value not in (None, {})}


#: Settings that are more than one value -> their reader.
PARSERS: Final[Mapping[Any, Callable[[str, yaml.Node | str, str], Any]]] = {
    Prices: parse_prices,
    Endpoints: parse_endpoints,
    Roles: parse_roles,
    Body: parse_body,
    Headers: parse_headers,
    TeamBudgets: parse_team_budgets,
}
