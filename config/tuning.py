"""What may be changed while workers run, and how a change is judged: as a file is, and all of it or nothing."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

from config.errors import ConfigError
from config.settings import COMMAND_LINE, Settings, _parse, with_value

#: The origin of a value that was changed on a running worker.
TUNED: Final = "tuned"
_PERFORMANCE: Final = "performance_optimization"
#: Settings that a running worker can change, by their short names. All others are read once, when it starts.
SHORT: Final = {
    "llm_connection_pool_size": f"{_PERFORMANCE}.llm_connection_pool_size",
    "worker_pool_size": f"{_PERFORMANCE}.worker_pool_size",
    "max_memory_cache_mb": f"{_PERFORMANCE}.max_memory_cache_mb",
    "memory_pressure_threshold_mb": f"{_PERFORMANCE}.memory_pressure_threshold_mb",
    "requests_per_minute": "llm.requests_per_minute",
    "request_burst": "llm.request_burst",
    "tokens_per_minute": "llm.tokens_per_minute",
    "learn_rate_limit": "llm.learn_rate_limit",
    "adaptive_concurrency": "llm.adaptive_concurrency",
    "adaptive_concurrency_min": "llm.adaptive_concurrency_min",
    "log_level": "logging.level",
}
TUNABLE: Final = tuple(SHORT.values())
#: Limits that all workers keep together: one with another number would break them for all.
SHARED: Final = frozenset({"llm.requests_per_minute", "llm.request_burst", "llm.tokens_per_minute"})


def full_key(name: str) -> str:
    """The key that a name or a key means. Raises ConfigError: it cannot be changed while workers run."""
    if name in TUNABLE:
        return name
    if name in SHORT:
        return SHORT[name]
    near = difflib.get_close_matches(name.rpartition(".")[2], SHORT, n=1, cutoff=0.7)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise ConfigError(
        f"{name}: cannot be changed while workers run{hint} These can: {', '.join(SHORT)}. "
        "Set anything else in the file or the environment, and start the workers again"
    )


def changes_of(texts: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` words as full key -> text. Raises ConfigError."""
    changes: dict[str, str] = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found:
            raise ConfigError(f"{text!r}: expected KEY=VALUE, for instance worker_pool_size=24")
        key = full_key(name.strip())
        if key in changes:
            raise ConfigError(f"{key}: stands twice; keep one")
        changes[key] = value.strip()
    return changes


def tuned(settings: Settings, changes: Mapping[str, str]) -> Settings:
    """The settings with these changes, full key -> text. Raises ConfigError: one is wrong, or at odds with another."""
    for name, text in changes.items():
        key = full_key(name)
        # Levels are written in small letters too.
        said = text.upper() if key == SHORT["log_level"] else text
        settings = with_value(settings, key, _parse(key, said, TUNED), origin=TUNED)
    return _consistent(settings)


def reloaded(current: Settings, fresh: Settings) -> tuple[Settings, list[str]]:
    """The settings to go on with after a file was read again, and the keys that differ but wait for a new start.

    The worker's command line wins. Raises ConfigError: what can be changed now is at odds with what cannot.
    """
    before, after = dict(current.items()), dict(fresh.items())
    changed = current
    for key in TUNABLE:
        if current.origin(key) != COMMAND_LINE:
            changed = with_value(changed, key, after[key], origin=fresh.origins.get(key))
    waiting = [key for key, value in after.items() if value != before[key] and key not in TUNABLE]
    return _consistent(changed), waiting


def _consistent(settings: Settings) -> Settings:
    for error in settings.contradictions():
        raise error
    return settings
