"""Typed, frozen settings, and where each value came from.

Sources, later ones win: the defaults, a YAML file, the overlay that `THEMES_ENV` names, the environment, the command
line. `config.yaml` beside this module is read where `THEMES_CONFIG` names no other file, and documents every key.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

import yaml

from config import legacy, sections
from config.container import CONTAINER, ContainerLimits, bounded_defaults, here
from config.contradictions import contradictions
from config.endpoints import PARSERS
from config.errors import ConfigError
from config.overlays import overlay
from config.values import convert_within, is_null, setting, shown
from config.yaml_file import Report, compose, pairs, read_text

DEFAULT_FILE: Final = Path(__file__).with_name("config.yaml")
DEFAULT: Final = "default"
#: The state directory where none is set: the checkout's, wherever a command is run, else `var` here.
_CHECKOUT: Final = DEFAULT_FILE.parents[1]
STATE_DIR: Final = _CHECKOUT / "var" if (_CHECKOUT / "pyproject.toml").exists() else Path("var")
COMMAND_LINE: Final = "command line"

#: Names that users of the OpenAI, Celery and SQLAlchemy worlds already have in their environment.
KNOWN_VARIABLES: Final = {
    "THEMES_STATE_DIR": "state_dir",
    "REDIS_URL": "performance_optimization.redis_url",
    "CELERY_BROKER_URL": "celery.broker_url",
    "DATABASE_URL": "database.url",
    "OPENAI_API_KEY": "llm.api_key",
    "OPENAI_BASE_URL": "llm.base_url",
    "THEMES_MODEL": "llm.model",
}
#: What a supervisor tells the worker process that it starts: how often it had to start one again, how often because it
#: consumed nothing, and a name that no other process has had.
SUPERVISED: Final = ("THEMES_RESTARTS", "THEMES_WEDGED", "THEMES_PROCESS_TOKEN")
#: What was to be said of the settings was said, by the process that started this one.
NOTED: Final = "THEMES_NOTED"
#: Variables of the same prefix that are no settings.
OTHER_VARIABLES: Final = {NOTED, "THEMES_CONFIG", "THEMES_ENV", "THEMES_PYTHON", "THEMES_DEBUG", *SUPERVISED}


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, and `origins`: `section.key` -> where its value came from."""

    state_dir: Path = setting(STATE_DIR)
    performance_optimization: sections.PerformanceSettings = field(default_factory=sections.PerformanceSettings)
    llm: sections.LlmSettings = field(default_factory=sections.LlmSettings)
    cache: sections.CacheSettings = field(default_factory=sections.CacheSettings)
    redis: sections.RedisSettings = field(default_factory=sections.RedisSettings)
    celery: sections.CelerySettings = field(default_factory=sections.CelerySettings)
    work: sections.WorkSettings = field(default_factory=sections.WorkSettings)
    database: sections.DatabaseSettings = field(default_factory=sections.DatabaseSettings)
    pipeline: sections.PipelineSettings = field(default_factory=sections.PipelineSettings)
    teams: sections.TeamsSettings = field(default_factory=sections.TeamsSettings)
    webhook: sections.WebhookSettings = field(default_factory=sections.WebhookSettings)
    web_discovery: sections.WebDiscoverySettings = field(default_factory=sections.WebDiscoverySettings)
    streaming: sections.StreamingSettings = field(default_factory=sections.StreamingSettings)
    profiling: sections.ProfilingSettings = field(default_factory=sections.ProfilingSettings)
    logging: sections.LoggingSettings = field(default_factory=sections.LoggingSettings)
    dashboard: sections.DashboardSettings = field(default_factory=sections.DashboardSettings)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    #: What is to be said of the files: old names, and what to write instead.
    remarks: tuple[str, ...] = field(default=(), compare=False)

    @property
    def redis_url(self) -> str:
        """The Redis that holds jobs, results and the cache."""
        return self.performance_optimization.redis_url

    @property
    def broker_url(self) -> str:
        """The Redis that holds the Celery queue: `celery.broker_url`, or the same one."""
        return self.celery.broker_url or self.redis_url

    @property
    def database_url(self) -> str:
        path = str((self.state_dir / "themes.db").absolute())
        return self.database.url or f"sqlite+aiosqlite:///{path.replace('%', '%25').replace('?', '%3F')}"

    def origin(self, key: str) -> str:
        return self.origins.get(key, DEFAULT)

    def is_set(self, key: str) -> bool:
        """Whether the user set `section.key` to something, in a file, the environment or on the command line."""
        return self.origin(key) not in {DEFAULT, CONTAINER}

    def items(self) -> Iterator[tuple[str, Any]]:
        for key in known_keys():
            section, _, name = key.rpartition(".")
            yield key, getattr(getattr(self, section) if section else self, name)

    def contradictions(self, wrong: AbstractSet[str] = frozenset()) -> Iterator[ConfigError]:
        return contradictions(dict(self.items()), self.origin, wrong)


def _sections() -> dict[str, type]:
    hints = get_type_hints(Settings)
    return {name: hints[name] for name in hints if name not in {"origins", "remarks", "state_dir"}}


@cache
def known_keys() -> dict[str, tuple[Field[Any], Any]]:
    """Every `section.key` -> its dataclass field and type."""
    keys: dict[str, tuple[Field[Any], Any]] = {"state_dir": (fields(Settings)[0], Path)}
    for section, class_ in _sections().items():
        hints = get_type_hints(class_)
        keys |= {f"{section}.{item.name}": (item, hints[item.name]) for item in fields(class_)}
    return keys


def load(
    *,
    path: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
    machine: ContainerLimits | None = None,
) -> Settings:
    """Read the settings. Raises ConfigError: the first thing that is wrong, with its place and the mend.

    `path` is by default the file that `THEMES_CONFIG` names, else the one beside this module; `overrides` are
    `section.key` -> text, from the command line. `machine` is what the container may use, which bounds defaults: by
    default this process's, and no limit with an environment that is not this process's.
    """
    machine = machine or (here() if env is None else ContainerLimits())
    return _load(path, os.environ if env is None else env, overrides or {}, _raise, machine)


def with_value(settings: Settings, key: str, value: Any, *, origin: str | None) -> Settings:
    """The settings with another value of one key, and where that came from; None is nowhere but the defaults."""
    section, _, name = key.rpartition(".")
    origins = {known: place for known, place in settings.origins.items() if known != key}
    if origin is not None:
        origins[key] = origin
    changes: dict[str, Any] = {section: replace(getattr(settings, section), **{name: value})}
    return replace(settings, **changes, origins=origins)


def problems(path: str | os.PathLike[str] | None = None, env: Mapping[str, str] | None = None) -> list[ConfigError]:
    """Everything that `load` would refuse, instead of the first thing; empty when the settings are fine."""
    found: list[ConfigError] = []
    _load(path, os.environ if env is None else env, {}, found.append, ContainerLimits())
    return found


def _raise(error: ConfigError) -> None:
    raise error


def _load(
    path: str | os.PathLike[str] | None,
    env: Mapping[str, str],
    overrides: Mapping[str, str],
    report: Report,
    machine: ContainerLimits,
) -> Settings:
    chosen = path or env.get("THEMES_CONFIG")
    file = Path(chosen) if chosen else DEFAULT_FILE
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    wrong: set[str] = set()
    remarks: list[str] = []
    layers: list[tuple[str, yaml.Node | str, str]] = [
        *_from_file(file, file.name, report, remarks),
        *_from_overlay(env, file.parent, report, remarks),
        *_from_environment(env, report),
        *((key, text, COMMAND_LINE) for key, text in overrides.items()),
    ]
    for key, node_or_text, place in layers:
        try:
            value = _parse(key, node_or_text, place)
        except ConfigError as exc:
            report(exc)
            wrong.add(key)
            continue
        if key == "state_dir" and file == DEFAULT_FILE and place.startswith(f"{file.name}:"):
            value = STATE_DIR.parent / value  # the file that belongs to a checkout speaks of its folders
        values[key] = value
        # The file we ship repeats the defaults: those count as not set.
        shipped = file == DEFAULT_FILE and place.startswith(f"{file.name}:") and value == _default(key)
        origins[key] = DEFAULT if shipped else place
    _bound(values, origins, machine)
    settings = _build(values, origins, remarks)
    for error in settings.contradictions(wrong):
        report(error)
    return settings


def _bound(values: dict[str, Any], origins: dict[str, str], machine: ContainerLimits) -> None:
    for key, most in bounded_defaults(machine).items():
        if origins.get(key, DEFAULT) == DEFAULT and most < _default(key):
            values[key] = max(most, least_of(key))
            origins[key] = CONTAINER


def _build(values: Mapping[str, Any], origins: Mapping[str, str], remarks: Sequence[str]) -> Settings:
    parts = {
        name: class_(**{k.partition(".")[2]: v for k, v in values.items() if k.startswith(f"{name}.")})
        for name, class_ in _sections().items()
    }
    return Settings(
        state_dir=values.get("state_dir", STATE_DIR),
        **parts,
        origins={k: place for k, place in origins.items() if place != DEFAULT},
        remarks=tuple(remarks),
    )


def _from_environment(env: Mapping[str, str], report: Report) -> Iterator[tuple[str, str, str]]:
    """Settings from variables, the well-known names first so that THEMES_SECTION__KEY wins."""
    for variable, key in KNOWN_VARIABLES.items():
        if env.get(variable):
            yield key, env[variable], f"environment {variable}"
    for variable in sorted(env):
        if not variable.startswith("THEMES_") or variable in KNOWN_VARIABLES or variable in OTHER_VARIABLES:
            continue
        key = variable.removeprefix("THEMES_").lower().replace("__", ".")
        if key in known_keys():
            yield key, env[variable], f"environment {variable}"
        else:
            report(ConfigError(f"environment {variable}: no such setting{_nearest(key, variable=True)}"))


def _from_overlay(
    env: Mapping[str, str], beside: Path, report: Report, remarks: list[str]
) -> Iterator[tuple[str, yaml.Node | str, str]]:
    if not env.get("THEMES_ENV"):
        return
    try:
        path = overlay(env["THEMES_ENV"], (beside / "environments", DEFAULT_FILE.parent / "environments"))
    except ConfigError as exc:
        report(exc)
    else:
        yield from _from_file(path, f"{path.parent.name}/{path.name}", report, remarks)


def _from_file(path: Path, name: str, report: Report, remarks: list[str]) -> Iterator[tuple[str, yaml.Node | str, str]]:
    try:
        root = compose(read_text(path), name)
    except ConfigError as exc:
        report(exc)
        return
    found, old = read_file(root, name, report)
    remarks += old.notice(name)
    for line in old.lines:
        yield line.key, line.source, line.place
    yield from found


def read_file(
    root: yaml.Node, name: str, report: Report
) -> tuple[list[tuple[str, yaml.Node, str]], legacy.Translation]:
    found: list[tuple[str, yaml.Node, str]] = []
    olds: list[legacy.Old] = []
    for section in pairs(root, name, report):
        if section.key == "state_dir":
            found.append((section.key, section.value, section.place))
        elif section.key not in _sections() and section.key != legacy.SECTION:
            report(ConfigError(f"{section.place}: unknown section {shown(section.key)}{_nearest(section.key)}"))
        elif not is_null(section.value):
            for entry in pairs(section.value, name, report):
                key = f"{section.key}.{entry.key}"
                if key in known_keys():
                    found.append((key, entry.value, entry.place))
                elif (old := legacy.find(section.key, entry, name, report)) is not None:
                    olds += old
                else:
                    report(ConfigError(f"{entry.place}: unknown setting {shown(key)}{_nearest(key)}"))
    return found, legacy.translate(olds, {key: place for key, _, place in found}, report)


def least_of(key: str) -> int:
    item, _ = known_keys()[key]
    return int(item.metadata.get("low") or 0)


def _default(key: str) -> Any:
    item, _ = known_keys()[key]
    return item.default if item.default_factory is MISSING else item.default_factory()


def _parse(key: str, source: yaml.Node | str, place: str) -> Any:
    if key not in known_keys():
        raise ConfigError(f"{place}: unknown setting {key!r}{_nearest(key)}")
    item, type_ = known_keys()[key]
    if parse := PARSERS.get(type_):
        return parse(key, "" if is_null(source) else source, place)
    if is_null(source):
        if type(None) in get_args(type_):
            return None
        raise ConfigError(f"{key}: expected a value, got nothing ({place})")
    if not isinstance(source, (str, yaml.ScalarNode)):
        raise ConfigError(f"{key}: expected a single value, got a list or section ({place})")
    text = (source if isinstance(source, str) else source.value).strip()
    return convert_within(key, item, type_, text, place)


def _nearest(key: str, *, variable: bool = False) -> str:
    names = [*known_keys(), *_sections()]
    same = [name for name in known_keys() if name.rpartition(".")[2] == key.rpartition(".")[2]]
    found = same[:1] or difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if not found and "." in key:
        tail = key.rpartition(".")[2]
        tails = {name.rpartition(".")[2]: name for name in names}
        found = [tails[near] for near in difflib.get_close_matches(tail, list(tails), n=1, cutoff=0.6)]
    if old := legacy.nearest(key):
        found = [old]
    if not found:
        return "; `themes config show` lists all of them"
    name = f"THEMES_{found[0].upper().replace('.', '__')}" if variable else found[0]
    return f"; did you mean {name}?"
