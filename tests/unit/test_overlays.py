"""Settings of an environment, on top of a file."""

import re
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from config.errors import ConfigError
from config.overlays import names
from config.settings import DEFAULT_FILE, Settings, load, problems

FOLDER = DEFAULT_FILE.parent / "environments"
OURS = sorted(FOLDER.glob("*.yaml"))
ROOT = DEFAULT_FILE.parents[1]


def test_an_overlay_stands_between_the_environment_and_the_file(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("work:\n  lease_seconds: 20\n  max_deliveries: 4\n")
    env = {"THEMES_ENV": "production", "THEMES_WORK__HEARTBEAT_SECONDS": "9"}
    settings = load(path=file, env=env, overrides={"work.max_unwritten_results": "777"})
    assert (settings.work.lease_seconds, settings.work.heartbeat_seconds) == (30.0, 9.0)
    assert (settings.work.max_deliveries, settings.work.max_unwritten_results) == (4, 777)
    assert re.fullmatch(r"environments/production.yaml:\d+", settings.origin("work.lease_seconds"))
    assert settings.origin("work.heartbeat_seconds") == "environment THEMES_WORK__HEARTBEAT_SECONDS"
    assert settings.origin("work.max_deliveries") == "my.yaml:3"
    assert settings.origin("work.max_unwritten_results") == "command line"


def test_an_overlay_that_is_unknown_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        load(env={"THEMES_ENV": "prodction"})
    assert str(caught.value) == (
        "environment THEMES_ENV: no overlay 'prodction'; there are: conservative, development, production "
        "(own ones: environments/NAME.yaml beside the settings file); did you mean production?"
    )


@pytest.mark.parametrize("name", ["../config", "/etc/passwd", "a/b", ".", "production.yaml", "a\0b", " "])
def test_an_overlay_is_a_plain_name(name: str) -> None:
    with pytest.raises(ConfigError, match="no overlay"):
        load(env={"THEMES_ENV": name})


def test_own_overlays_lie_beside_the_own_file_and_come_first(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("work:\n  lease_seconds: 20\n")
    (tmp_path / "environments").mkdir()
    (tmp_path / "environments" / "night.yaml").write_text("work:\n  lease_seconds: 60\n")
    (tmp_path / "environments" / "production.yaml").write_text("work:\n  max_deliveries: 9\n")
    env = {"THEMES_CONFIG": str(file)}
    assert load(env=env | {"THEMES_ENV": "night"}).work.lease_seconds == 60
    own = load(env=env | {"THEMES_ENV": "production"})
    assert (own.work.max_deliveries, own.work.lease_seconds) == (9, 20.0)
    assert load(env=env | {"THEMES_ENV": "conservative"}).redis.enabled is False
    with pytest.raises(ConfigError, match="conservative, development, night, production"):
        load(env=env | {"THEMES_ENV": "x"})


def test_an_error_in_an_overlay_names_its_place_and_an_old_name_is_understood(tmp_path: Path) -> None:
    (tmp_path / "environments").mkdir()
    overlay = tmp_path / "environments" / "mine.yaml"
    env = {"THEMES_ENV": "mine"}
    (tmp_path / "my.yaml").write_text("")
    overlay.write_text("work:\n  lease_second: 60\n")
    (problem,) = problems(tmp_path / "my.yaml", env)
    assert str(problem).startswith("environments/mine.yaml:2: unknown setting")
    overlay.write_text("performance:\n  max_worker_threads: 3\n")
    settings = load(path=tmp_path / "my.yaml", env=env)
    assert settings.origin("performance_optimization.worker_pool_size") == (
        "environments/mine.yaml:2 as performance.max_worker_threads"
    )
    assert settings.remarks[0].startswith("environments/mine.yaml: ")


def test_an_overlay_that_contradicts_the_file_is_refused_with_both_places(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("celery:\n  visibility_timeout_seconds: 60\n")
    (tmp_path / "environments").mkdir()
    (tmp_path / "environments" / "slow.yaml").write_text("work:\n  lease_seconds: 90\n")
    with pytest.raises(ConfigError) as caught:
        load(path=tmp_path / "my.yaml", env={"THEMES_ENV": "slow"})
    assert "environments/slow.yaml:2" in str(caught.value)
    assert "my.yaml:2" in str(caught.value)


# --- ours ---


def test_there_are_three() -> None:
    assert names([FOLDER]) == ["conservative", "development", "production"]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_each_of_ours_is_right_and_changes_something(path: Path) -> None:
    settings = load(env={"THEMES_ENV": path.stem})
    values = [f"{section}.{key}" for section, keys in yaml.safe_load(path.read_text()).items() for key in keys]
    assert sorted(settings.origins) == sorted(values)
    assert settings != Settings()
    defaults = dict(Settings().items())
    assert [key for key, value in settings.items() if key in values and value == defaults[key]] == []
    assert not settings.remarks


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_each_value_of_ours_has_its_reason_above_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    bare = []
    for above, line in pairwise(lines):
        is_same_thing = line.strip().startswith(
            ("heartbeat_seconds", "llm_connection_pool_min_size", "retry_max_delay")
        )
        if re.match(r"  [a-z]", line) and not re.match(r"\s*# \S", above) and not is_same_thing:
            bare.append(line)
    assert bare == []


def test_conservative_is_the_minimal_set_up() -> None:
    settings = load(env={"THEMES_ENV": "conservative"})
    performance = settings.performance_optimization
    assert settings.redis.enabled is False
    assert performance.llm_connection_pool_size == 5
    assert performance.enable_work_stealing is False
    assert performance.enable_streaming_results is False
    assert performance.enable_persistent_cache is False


def test_overlays_are_in_the_wheel_and_in_the_image(tmp_path: Path) -> None:
    builder = pytest.importorskip("hatchling.builders.wheel")
    (wheel,) = builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert {f"config/environments/{path.name}" for path in OURS} <= inside
    assert "COPY config ./config" in (ROOT / "Dockerfile").read_text()
