"""Which servers there are, what their keys are, and which model answers which stage."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from config.endpoints import EndpointSettings
from config.sections import LlmSettings
from config.values import Secret
from tasks.errors import ConfigError
from tasks.prices.table import OPENAI_BASE_URL
from tasks.redis_url import masked

#: The name of the endpoint that `llm.base_url` and `llm.api_key` describe.
ONLY: Final = "llm"
#: Characters that a key file may have.
MAX_KEY_CHARACTERS: Final = 16_384


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server, its key read. `limits` are the settings with this server's own rate limits."""

    name: str
    #: Up to and including /v1; `query` is what a server wants behind each path, such as Azure's `api-version=…`.
    base_url: str = field(repr=False)
    limits: LlmSettings = field(repr=False)
    query: str = field(default="", repr=False)
    api_key: Secret | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    weight: float = 1.0
    models: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def serves(self, model: str) -> bool:
        return not self.models or model in self.models

    def name_of(self, model: str) -> str:
        return self.models.get(model, model)


def endpoints(settings: LlmSettings, env: Mapping[str, str] | None = None) -> list[Endpoint]:
    """Every endpoint of the settings, keys read from `env` (by default the process's) and from files.

    Raises `ConfigError`: there is none, no model is set, or a key cannot be read.
    """
    env = os.environ if env is None else env
    if settings.endpoints:
        _default_model(settings)
        return [_named(name, one, settings, env) for name, one in settings.endpoints.items()]
    api_key = settings.api_key or _from_file("llm.api_key_file", settings.api_key_file)
    _refuse_unfit_key("llm.api_key", "OPENAI_API_KEY", api_key)
    if not settings.base_url and not api_key:
        raise ConfigError(
            "no LLM endpoint is set: export OPENAI_BASE_URL=https://… OPENAI_API_KEY=… THEMES_MODEL=…, "
            "or use the sandbox (`themes up --sandbox`)"
        )
    _default_model(settings)
    address = str.__str__(settings.base_url or OPENAI_BASE_URL)
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"llm.base_url: expected http://… or https://…, got {masked(address)!r} (OPENAI_BASE_URL)")
    _refuse_two_keys("llm.base_url", address, api_key)
    base_url, query = _split(address)
    return [Endpoint(ONLY, base_url, settings, query=query, api_key=api_key, headers=settings.headers)]


def _split(address: str) -> tuple[str, str]:
    path, _, query = address.partition("#")[0].partition("?")
    return path.rstrip("/"), query


def _refuse_two_keys(place: str, base_url: str, api_key: str | None) -> None:
    if api_key and "@" in urlsplit(base_url).netloc:
        raise ConfigError(f"{place}: has a name and password in it beside the key; a server takes one of them")


def _refuse_unfit_key(place: str, source: str, api_key: str | None) -> None:
    text = str.__str__(api_key) if api_key else ""
    if not all("!" <= char <= "~" for char in text):
        raise ConfigError(
            f"{place}: the key has a blank, a line break or another character that no key has ({source}): "
            "copy the key alone, without what stands before or after it"
        )


def _named(name: str, one: EndpointSettings, settings: LlmSettings, env: Mapping[str, str]) -> Endpoint:
    place = f"llm.endpoints.{name}"
    key = one.api_key or _from_file(f"{place}.api_key_file", Path(one.api_key_file) if one.api_key_file else None)
    if one.api_key_env:
        key = Secret(env.get(one.api_key_env, ""))
        if not key.strip():
            raise ConfigError(f"{place}.api_key_env: {one.api_key_env} is not set; export {one.api_key_env}=…")
    _refuse_unfit_key(f"{place}.api_key", one.api_key_env or "the settings", key)
    _refuse_two_keys(f"{place}.base_url", one.base_url or "", key)
    base_url, query = _split(str.__str__(one.base_url or ""))
    return Endpoint(
        name,
        base_url,
        limits_of(settings, name),
        query=query,
        api_key=key,
        headers={**settings.headers, **one.headers},
        weight=one.weight,
        models=one.models,
    )


def limits_of(settings: LlmSettings, name: str) -> LlmSettings:
    """The settings with the rate limits that hold for one endpoint: its own, else those for all."""
    one = settings.endpoints.get(name)
    if one is None:
        return settings
    return replace(
        settings,
        requests_per_minute=one.requests_per_minute or settings.requests_per_minute,
        request_burst=one.request_burst or settings.request_burst,
        tokens_per_minute=one.tokens_per_minute or settings.tokens_per_minute,
        tier=one.tier or settings.tier,
    )


def _from_file(place: str, path: Path | None) -> Secret | None:
    if path is None:
        return None
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_KEY_CHARACTERS).strip()
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{place}: {path} cannot be read: {exc}") from exc
    if not text or len(text.split()) > 1:
        raise ConfigError(f"{place}: {path} must hold one key and nothing else")
    return Secret(text)


def model_for(settings: LlmSettings, stage: str, wish: str | None = None) -> str:
    """The model that answers a stage. Raises `ConfigError`: there is no default model.

    `wish` is the prompt file's `model:`, a role or a model; else the role is the stage's name before the dot.
    """
    if wish is not None and wish not in settings.roles:
        return wish
    role = wish or stage.partition(".")[0]
    return settings.roles.get(stage) or settings.roles.get(role) or _default_model(settings)


def _default_model(settings: LlmSettings) -> str:
    if not settings.model:
        raise ConfigError("llm.model is not set: export THEMES_MODEL=… with a model that the endpoint offers")
    return settings.model
