"""What may be changed while workers run, and how a change is judged.

A change is read by the parser of the settings, held against the other settings like a file, and made whole or not at
all. The log level is none of the settings, but is changed in the same way.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from config.errors import ConfigError
from config.settings import Settings, _contradictions, _parse

#: The origin of a value that was changed on a running worker.
TUNED: Final = "tuned"
LOG_LEVEL: Final = "log_level"
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")
_PERFORMANCE: Final = "performance_optimization"
#: Settings that a running worker can change. All others are read once, when it starts.
TUNABLE: Final = (
    f"{_PERFORMANCE}.llm_connection_pool_size",
    f"{_PERFORMANCE}.worker_pool_size",
    f"{_PERFORMANCE}.max_memory_cache_mb",
    f"{_PERFORMANCE}.memory_pressure_threshold_mb",
    "llm.requests_per_minute",
    "llm.request_burst",
    "llm.tokens_per_minute",
    "llm.learn_rate_limit",
    "llm.adaptive_concurrency",
    "llm.adaptive_concurrency_min",
)
#: Limits that all workers keep together: one with another number would break them for all.
SHARED: Final = frozenset({"llm.requests_per_minute", "llm.request_burst", "llm.tokens_per_minute"})
_SHORT: Final = {key.rpartition(".")[2]: key for key in TUNABLE}


@dataclass(frozen=True, slots=True)
class Tuning:
    """Settings with changes, and the log level where that was changed."""

    settings: Settings
    log_level: str | None = None


def full_key(name: str) -> str:
    """The key that a name means: `worker_pool_size` is `performance_optimization.worker_pool_size`.

    Raises:
        ConfigError: it cannot be changed while workers run.
    """
    if name in TUNABLE or name == LOG_LEVEL:
        return name
    if name in _SHORT:
        return _SHORT[name]
    near = difflib.get_close_matches(name.rpartition(".")[2], [*_SHORT, LOG_LEVEL], n=1, cutoff=0.7)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"{name}: cannot be changed while workers run{hint} These can: {', '.join([*_SHORT, LOG_LEVEL])}. "
        "Set anything else in the file or the environment, and start the workers again"
    )


def changes_of(texts: Iterable[str]) -> dict[str, str]:
    """`KEY=VALUE` words as full key -> text.

    Raises:
        ConfigError: a word of another shape, a key that stands twice or cannot be changed.
    """
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


def tuned(settings: Settings, changes: Mapping[str, str], *, origin: str = TUNED) -> Tuning:
    """The settings with some values changed, all of them or none.

    Args:
        settings: what holds now.
        changes: full key -> text; nothing or `null` where a setting may be empty.
        origin: what the changed values say of where they came from.

    Raises:
        ConfigError: a value of the wrong type, out of bounds, or at odds with another setting.
    """
    values: dict[str, Any] = {}
    level = None
    for key, text in changes.items():
        if key == LOG_LEVEL:
            level = _log_level(text)
        else:
            values[full_key(key)] = _parse(full_key(key), text, origin)
    changed = settings
    for key, value in values.items():
        section, _, name = key.partition(".")
        part = replace(getattr(changed, section), **{name: value})
        changed = replace(changed, **{section: part}, origins={**changed.origins, key: origin})
    for error in _contradictions(changed, frozenset()):
        raise error
    return Tuning(changed, level)


def reloaded(current: Settings, fresh: Settings) -> tuple[Settings, list[str], list[str]]:
    """What a file that was read again changes in a running worker.

    Returns:
        the settings to go on with, the keys that change, and the keys that differ but wait for a new start.
    """
    before = dict(current.items())
    differing = [key for key, value in fresh.items() if value != before[key]]
    now = [key for key in differing if key in TUNABLE]
    changed = current
    origins = dict(current.origins)
    for key in TUNABLE:
        section, _, name = key.partition(".")
        part = replace(getattr(changed, section), **{name: getattr(getattr(fresh, section), name)})
        changed = replace(changed, **{section: part})
        origins.pop(key, None)
        if key in fresh.origins:
            origins[key] = fresh.origins[key]
    changed = replace(changed, origins=origins)
    for error in _contradictions(changed, frozenset()):
        raise error
    return changed, now, [key for key in differing if key not in TUNABLE]


def _log_level(text: str) -> str:
    level = text.strip().upper()
    if level not in LOG_LEVELS:
        raise ConfigError(f"{LOG_LEVEL}: expected one of {', '.join(LOG_LEVELS)}, got {text!r} ({TUNED})")
    return level
