"""Settings that are right by themselves and cannot hold together."""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from config.endpoints import BATCH
from config.errors import ConfigError
from config.values import BASE64_SECRET, signing_key

_PERFORMANCE: Final = "performance_optimization"


@dataclass(frozen=True, slots=True)
class _Pair:
    """`low` times `factor` must not exceed `high`. `only_set`: defaults give way, so both must have been set."""

    low: str
    high: str
    factor: int = 1
    only_set: bool = False


_PAIRS: Final = (
    _Pair(f"{_PERFORMANCE}.llm_connection_pool_min_size", f"{_PERFORMANCE}.llm_connection_pool_size"),
    _Pair(f"{_PERFORMANCE}.retry_base_delay", f"{_PERFORMANCE}.retry_max_delay"),
    # A worker that misses one heartbeat keeps its work.
    _Pair("work.heartbeat_seconds", "work.lease_seconds", factor=2),
    # The consumer never sees a whole batch when workers stop before it is full.
    _Pair(f"{_PERFORMANCE}.database_batch_size", "work.max_unwritten_results"),
    _Pair("llm.adaptive_concurrency_min", f"{_PERFORMANCE}.llm_connection_pool_size"),
    # More at once than a whole minute allows.
    _Pair("llm.request_burst", "llm.requests_per_minute"),
    # Progress would be told of what is not written yet.
    _Pair("database.flush_interval_seconds", f"{_PERFORMANCE}.progressive_feedback_interval"),
    _Pair("streaming.flush_interval_seconds", f"{_PERFORMANCE}.progressive_feedback_interval"),
    # Celery would send again what a living worker still owns.
    _Pair("work.lease_seconds", "celery.visibility_timeout_seconds"),
    _Pair("streaming.chunk_size", "streaming.max_events_per_job", only_set=True),
    _Pair("llm.connect_timeout_seconds", "llm.request_timeout_seconds", only_set=True),
)


def contradictions(
    values: Mapping[str, Any], origin: Callable[[str], str], wrong: AbstractSet[str]
) -> Iterator[ConfigError]:
    """An error that tells both places for each contradiction, but those that `wrong` settings are part of."""
    for pair in _PAIRS:
        low, high = values[pair.low], values[pair.high]
        if low is None or high is None or wrong & {pair.low, pair.high} or low * pair.factor <= high:
            continue
        if pair.only_set and "default" in {origin(pair.low), origin(pair.high)}:
            continue
        twice = "twice " if pair.factor > 1 else ""
        yield ConfigError(
            f"{pair.low} ({origin(pair.low)}): {twice}its value must not exceed {pair.high}, "
            f"but {low * pair.factor:g} > {high:g} ({origin(pair.high)})"
        )
    key = f"{_PERFORMANCE}.enable_persistent_cache"
    tiers = {"llm.tier": values["llm.tier"]}
    tiers |= {f"llm.endpoints.{name}.tier": one.tier for name, one in values["llm.endpoints"].items()}
    if not values[key] and BATCH in tiers.values() and not wrong & {"llm.tier", "llm.endpoints", key}:
        place = next(name for name, tier in tiers.items() if tier == BATCH)
        yield ConfigError(
            f"{place}: batch needs {key}, which is off ({origin(key)}): answers would be lost between rounds"
        )
    if values["webhook.url"] and not wrong & {"webhook.url", "webhook.secret"}:
        yield from _of_webhook(values["webhook.url"], values["webhook.secret"] or "", origin)
    for name, endpoint in values["llm.endpoints"].items():
        burst, limit = endpoint.request_burst, endpoint.requests_per_minute
        if burst is not None and limit is not None and burst > limit:
            key = f"llm.endpoints.{name}"
            yield ConfigError(
                f"{key}.request_burst: its value must not exceed {key}.requests_per_minute, "
                f"but {burst:g} > {limit:g} ({origin('llm.endpoints')})"
            )


def _of_webhook(url: str, secret: str, origin: Callable[[str], str]) -> Iterator[ConfigError]:
    place = f"webhook.url ({origin('webhook.url')})"
    if not _is_address(url):
        yield ConfigError(f"{place}: expected an address that begins with https:// and a host")
    if not secret:
        yield ConfigError(f"{place}: needs webhook.secret, which signs what is posted")
        return
    try:
        signing_key(secret)
    except ValueError:
        # As the libraries that check it take it.
        yield ConfigError(
            f"webhook.secret ({origin('webhook.secret')}): expected {BASE64_SECRET} and base64 behind that: "
            f'echo "{BASE64_SECRET}$(head -c 32 /dev/urandom | base64)"'
        )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # Brackets without an end, a port that is none.
        return False
