"""Names that settings had before, and what they mean today.

Three forms are read: the section `performance`, sections within `performance_optimization`, and single names there. A
key of today wins over an old one. What has no meaning today is named with the reason and the lines to write instead.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Final
from urllib.parse import quote

import yaml

from config.errors import ConfigError
from config.sections import PerformanceSettings
from config.values import convert, is_null, shown, without_password
from config.yaml_file import Entry, Report, pairs

SECTION: Final = "performance"
TODAY: Final = "performance_optimization"
#: Sections within `performance_optimization` that there were once.
NESTED: Final = (
    "llm_connection_pool", "persistent_cache", "database_pool", "work_stealing", "streaming", "memory_management",
    "monitoring",
)  # fmt: skip
#: Old name -> today's, with the same values.
RENAMED: Final[Mapping[str, str]] = {
    f"{SECTION}.max_parallel_llm_requests": f"{TODAY}.llm_connection_pool_size",
    f"{SECTION}.theme_batch_size": f"{TODAY}.theme_batch_size",
    f"{SECTION}.enable_intelligent_batching": f"{TODAY}.enable_intelligent_batching",
    f"{SECTION}.enable_llm_response_caching": f"{TODAY}.enable_persistent_cache",
    f"{SECTION}.max_llm_retries": f"{TODAY}.max_llm_retries",
    f"{SECTION}.retry_base_delay": f"{TODAY}.retry_base_delay",
    f"{SECTION}.retry_max_delay": f"{TODAY}.retry_max_delay",
    f"{SECTION}.parallel_processing": f"{TODAY}.enable_work_stealing",
    f"{SECTION}.max_worker_threads": f"{TODAY}.worker_pool_size",
    f"{SECTION}.chunk_size": "work.max_chunk_size",
    f"{SECTION}.progress_update_interval": f"{TODAY}.progressive_feedback_interval",
    f"{TODAY}.connection_timeout_seconds": "llm.connect_timeout_seconds",
    f"{TODAY}.enable_streaming": f"{TODAY}.enable_streaming_results",
    f"{TODAY}.enable_performance_monitoring": f"{TODAY}.enable_performance_profiling",
    f"{TODAY}.llm_connection_pool.max_connections": f"{TODAY}.llm_connection_pool_size",
    f"{TODAY}.llm_connection_pool.min_connections": f"{TODAY}.llm_connection_pool_min_size",
    f"{TODAY}.llm_connection_pool.connection_timeout": "llm.connect_timeout_seconds",
    f"{TODAY}.llm_connection_pool.max_idle_time": "llm.idle_connection_seconds",
    f"{TODAY}.llm_connection_pool.health_check_interval": f"{TODAY}.health_check_interval_seconds",
    f"{TODAY}.llm_connection_pool.retry_attempts": f"{TODAY}.max_llm_retries",
    f"{TODAY}.llm_connection_pool.retry_delay": f"{TODAY}.retry_base_delay",
    f"{TODAY}.persistent_cache.enable_compression": f"{TODAY}.enable_result_compression",
    f"{TODAY}.database_pool.max_connections": f"{TODAY}.database_connection_pool_size",
    f"{TODAY}.database_pool.connection_timeout": f"{TODAY}.database_timeout_seconds",
    f"{TODAY}.database_pool.batch_size": f"{TODAY}.database_batch_size",
    f"{TODAY}.work_stealing.num_workers": f"{TODAY}.worker_pool_size",
    f"{TODAY}.streaming.chunk_size": "streaming.chunk_size",
    f"{TODAY}.streaming.update_interval": f"{TODAY}.progressive_feedback_interval",
}
#: Old name -> why there is nothing to set today.
MEANINGLESS: Final[Mapping[str, str]] = {
    f"{SECTION}.clear_cache_on_completion": "answers leave the cache by cache_ttl_days, or with `themes cache clear`",
    f"{SECTION}.enable_progress_bars": "`themes watch` shows progress to a user that calls it",
    f"{SECTION}.show_detailed_progress": "`themes watch` and the page of a job show every stage",
    f"{TODAY}.enable_memory_tracking": "memory is read with every report of a worker; it costs nothing",
    f"{TODAY}.max_steal_attempts": "a lane takes from the fullest other one, which cannot fail",
    f"{TODAY}.enabled": "each optimisation has a switch of its own; THEMES_ENV=conservative turns all off",
    f"{TODAY}.enable_connection_pooling": "connections are always kept; llm_connection_pool_size: 1 keeps one",
    f"{TODAY}.enable_async_database": "there is one way to write the database",
    f"{TODAY}.persistent_cache.fallback_to_memory": "there is always a cache in memory too",
    f"{TODAY}.database_pool.min_connections": "database connections are opened when they are needed",
    f"{TODAY}.database_pool.max_idle_time": "database connections stay open",
    f"{TODAY}.streaming.buffer_size": "the buffer is bounded by itself",
    f"{TODAY}.streaming.enable_progress_callbacks": "progress is events, for whoever follows them",
}
_PRESSURE: Final = f"{TODAY}.memory_pressure_threshold_mb"
#: What switched a limit of memory on -> the limit.
_LIMITS: Final[Mapping[str, str]] = {
    f"{SECTION}.limit_memory_usage": f"{SECTION}.max_memory_mb",
    f"{TODAY}.memory_management.enable_memory_monitoring": f"{TODAY}.memory_management.memory_threshold_mb",
}
#: A limit that no process reaches, in MiB: the upper bound of the setting.
_NO_LIMIT: Final = "1048576"
_SECONDS_PER_DAY: Final = 86_400
_REDIS: Final = tuple(f"{TODAY}.persistent_cache.redis_{part}" for part in ("host", "port", "db", "password"))
_HOST: Final = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_MAX_PORT: Final = 65_535
_POOL, _POOL_MIN = f"{TODAY}.llm_connection_pool_size", f"{TODAY}.llm_connection_pool_min_size"
_FLAT: Final = frozenset(item.name for item in fields(PerformanceSettings))


@dataclass(frozen=True, slots=True)
class Old:
    name: str
    entry: Entry

    @property
    def text(self) -> str:
        return str(self.entry.value.value).strip()

    @property
    def is_on(self) -> bool:
        return bool(convert(self.name, bool, self.text, self.entry.place))

    def number(self, high: int) -> int:
        number = int(convert(self.name, int, self.text, self.entry.place))
        if not 0 <= number <= high:
            message = f"{self.name}: expected a number from 0 to {high}, got {shown(self.text)} ({self.entry.place})"
            raise ConfigError(message)
        return number

    def line(self, key: str, text: str | None = None) -> "Line":
        return Line(key, self.entry.value if text is None else text, (self,), f"{self.entry.place} as {self.name}")


Olds = Mapping[str, Old]


@dataclass(frozen=True, slots=True)
class Line:
    """A setting of today that old keys stand for; without any it follows from the line before it."""

    key: str
    source: yaml.Node | str
    olds: tuple[Old, ...]
    place: str

    @property
    def text(self) -> str:
        if isinstance(self.source, str):
            return self.source
        value = str(self.source.value)
        is_quoted = isinstance(self.source, yaml.ScalarNode) and self.source.style is not None
        return json.dumps(value, ensure_ascii=False) if is_quoted else value


@dataclass(slots=True)
class Translation:
    """What a file's old keys mean: lines of today, and what is said of keys that another wins over or without any."""

    lines: list[Line] = field(default_factory=list)
    beaten: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def drop(self, old: Old, why: str) -> None:
        self.dropped.append(f"Without meaning today: {old.name} ({_line_of(old.entry.place)}): {why}")

    def notice(self, name: str) -> list[str]:
        """What is to be said of the file `name`, if anything."""
        if not (self.lines or self.beaten or self.dropped):
            return []
        said = [f"{name}: old names of settings are still read."]
        if self.lines:
            said.append("Write instead:")
        section = ""
        for line in sorted(self.lines, key=lambda one: one.key.partition(".")[0]):
            head, _, key = line.key.partition(".")
            if head != section:
                section = head
                said.append(f"{section}:")
            was = ", ".join(old.name for old in line.olds) or "no more than llm_connection_pool_size"
            said.append(f"  {key}: {without_password(line.text)}  # {was} ({_line_of(line.place)})")
        return ["\n".join([*said, *self.beaten, *self.dropped])]


def find(section: str, entry: Entry, name: str, report: Report) -> list[Old] | None:
    """The old keys that an unknown line of a section is or has; None when it is none."""
    key = f"{section}.{entry.key}"
    if section == TODAY and entry.key in NESTED:
        inner = [] if is_null(entry.value) else pairs(entry.value, name, report)
        return [Old(f"{key}.{leaf.key}", leaf) for leaf in inner]
    return [Old(key, entry)] if key in KNOWN else None


def nearest(key: str) -> str | None:
    """The name of today for an old name or one that is almost one."""
    if key in RENAMED or not key.startswith(f"{SECTION}."):
        return RENAMED.get(key)
    found = difflib.get_close_matches(key, [old for old in KNOWN if old.startswith(f"{SECTION}.")], n=1, cutoff=0.8)
    return found[0] if found else None


def translate(olds: Iterable[Old], today: Mapping[str, str], report: Report) -> Translation:
    """What old keys mean beside those of today, `key -> place`.

    Of several old names of one thing the flat one counts, then the nested, then the section `performance`.
    """
    result = Translation()
    taken = dict(today)
    usable = {old.name: old for old in sorted(olds, key=_rank) if _is_usable(old, result, report)}
    for old in usable.values():
        try:
            line = _meaning(old, usable)
        except ConfigError as exc:
            report(exc)
            continue
        if isinstance(line, str):
            result.drop(old, line)
        elif line is not None and line.key in taken:
            wins = f"{line.key} ({_line_of(taken[line.key])}) wins"
            result.beaten += [f"Passed over: {one.name} ({_line_of(one.entry.place)}): {wins}" for one in line.olds]
        elif line is not None:
            taken[line.key] = line.place
            result.lines.append(line)
            if line.key == _POOL:
                result.lines += _smaller_minimum(line, today, usable)
    return result


def _line_of(place: str) -> str:
    return f"line {place.partition(' as ')[0].rpartition(':')[2]}"


def _rank(old: Old) -> int:
    return 2 if old.name.startswith(f"{SECTION}.") else old.name.count(".") - 1


def _is_usable(old: Old, result: Translation, report: Report) -> bool:
    value = old.entry.value
    if is_null(value):
        result.drop(old, "is empty")
        return False
    if not isinstance(value, yaml.ScalarNode):
        report(ConfigError(f"{old.name}: expected a single value, got a list or section ({old.entry.place})"))
        return False
    return True


def _meaning(old: Old, olds: Olds) -> Line | str | None:
    """The setting of today, or why there is none; None where another old key has it."""
    name, leaf = old.name, old.name.rpartition(".")[2]
    if name in RENAMED:
        return old.line(RENAMED[name])
    if name in OTHERWISE:
        return OTHERWISE[name][1](old, olds)
    if leaf in _FLAT and name not in KNOWN:
        # Within a nested section there were flat names of today, too.
        return old.line(f"{TODAY}.{leaf}")
    return MEANINGLESS.get(name) or MEANINGLESS.get(f"{TODAY}.{leaf}") or "nothing reads it"


def _limit(old: Old, olds: Olds) -> Line | str:
    """A switch and a number: one number, which is out of reach when the switch is off."""
    switch = next(switch for switch, number in _LIMITS.items() if old.name in {switch, number})
    is_off = switch in olds and not olds[switch].is_on
    if old.name == switch:
        watched = "memory is always watched (memory_pressure_threshold_mb)"
        return old.line(_PRESSURE, _NO_LIMIT) if is_off else watched
    return f"{switch} is off" if is_off else old.line(_PRESSURE)


def _detail(old: Old, _: Olds) -> Line | str:
    kept = "the slowest destinations are always kept in detail (profiling.slowest_kept)"
    return kept if old.is_on else old.line("profiling.slowest_kept", "0")


def _ttl(old: Old, _: Olds) -> Line:
    days = convert(old.name, float, old.text, old.entry.place) / _SECONDS_PER_DAY
    return old.line(f"{TODAY}.cache_ttl_days", f"{days:.12g}")


def _redis(old: Old, olds: Olds) -> Line | None:
    parts = tuple(olds[part] for part in _REDIS if part in olds)
    if old is not parts[0]:
        return None
    host, port, number, password = (olds.get(part) for part in _REDIS)
    name = host.text if host else "localhost"
    if host and not _HOST.fullmatch(name):
        raise ConfigError(
            f"{host.name}: expected the name or address of a machine, got {shown(name)} ({host.entry.place})"
        )
    secret = f":{quote(str(password.entry.value.value), safe='')}@" if password else ""
    where = f"[{name}]" if ":" in name else name
    place = f"{where}:{port.number(_MAX_PORT) if port else 6379}/{number.number(1_000_000) if number else 1}"
    return replace(old.line(f"{TODAY}.redis_url", f"redis://{secret}{place}"), olds=parts)


def _smaller_minimum(pool: Line, today: Mapping[str, str], olds: Olds) -> list[Line]:
    """A pool smaller than the default minimum of today, which the old names did not have, brings the minimum down."""
    minimum = PerformanceSettings().llm_connection_pool_min_size
    is_given = _POOL_MIN in today or any(RENAMED.get(name) == _POOL_MIN for name in olds)
    text = pool.text.replace("_", "")
    if is_given or not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) < minimum:
        return []
    return [Line(_POOL_MIN, text, (), pool.place)]


_DETAIL: Final = ("off: `profiling.slowest_kept: 0`", _detail)
#: Old names whose values are read in another way: in words, and the rule.
OTHERWISE: Final[Mapping[str, tuple[str, Callable[[Old, Olds], Line | str | None]]]] = {
    f"{SECTION}.limit_memory_usage": (f"off: `{_PRESSURE}` at its upper bound", _limit),
    f"{SECTION}.max_memory_mb": (f"`{_PRESSURE}`", _limit),
    f"{TODAY}.memory_management.enable_memory_monitoring": ("as limit_memory_usage", _limit),
    f"{TODAY}.memory_management.memory_threshold_mb": (f"`{_PRESSURE}`", _limit),
    f"{TODAY}.enable_detailed_profiling": _DETAIL,
    f"{TODAY}.monitoring.enable_detailed_profiling": _DETAIL,
    f"{TODAY}.persistent_cache.default_ttl": (f"`{TODAY}.cache_ttl_days`, seconds / 86400", _ttl),
    **dict.fromkeys(_REDIS, (f"a part of `{TODAY}.redis_url`", _redis)),
}
KNOWN: Final = frozenset({*RENAMED, *MEANINGLESS, *OTHERWISE})
