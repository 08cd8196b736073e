"""Names that settings had before: read, told once, and beaten by today's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config import legacy
from config.errors import ConfigError
from config.settings import Settings, known_keys, load

#: Every key of the section `performance`, with a value that is nobody's default -> today's key and value.
PERFORMANCE = {
    "max_parallel_llm_requests": ("7", "performance_optimization.llm_connection_pool_size", 7),
    "theme_batch_size": ("9", "performance_optimization.theme_batch_size", 9),
    "enable_intelligent_batching": ("false", "performance_optimization.enable_intelligent_batching", False),
    "enable_llm_response_caching": ("false", "performance_optimization.enable_persistent_cache", False),
    "max_llm_retries": ("0", "performance_optimization.max_llm_retries", 0),
    "retry_base_delay": ("0.5", "performance_optimization.retry_base_delay", 0.5),
    "retry_max_delay": ("20", "performance_optimization.retry_max_delay", 20.0),
    "parallel_processing": ("no", "performance_optimization.enable_work_stealing", False),
    "max_worker_threads": ("4", "performance_optimization.worker_pool_size", 4),
    "chunk_size": ("1000", "work.max_chunk_size", 1000),
    "clear_cache_on_completion": ("true", None, None),
    "limit_memory_usage": ("true", None, None),
    "max_memory_mb": ("2048", "performance_optimization.memory_pressure_threshold_mb", 2048),
    "enable_progress_bars": ("true", None, None),
    "show_detailed_progress": ("true", None, None),
    "progress_update_interval": ("3", "performance_optimization.progressive_feedback_interval", 3.0),
}
NESTED = {
    "llm_connection_pool.max_connections": ("8", "performance_optimization.llm_connection_pool_size", 8),
    "llm_connection_pool.min_connections": ("3", "performance_optimization.llm_connection_pool_min_size", 3),
    "llm_connection_pool.connection_timeout": ("11", "llm.connect_timeout_seconds", 11.0),
    "llm_connection_pool.max_idle_time": ("44", "llm.idle_connection_seconds", 44.0),
    "llm_connection_pool.health_check_interval": ("0", "performance_optimization.health_check_interval_seconds", 0.0),
    "llm_connection_pool.retry_attempts": ("4", "performance_optimization.max_llm_retries", 4),
    "llm_connection_pool.retry_delay": ("2", "performance_optimization.retry_base_delay", 2.0),
    "persistent_cache.redis_host": ("cache", "performance_optimization.redis_url", "redis://cache:6379/1"),
    "persistent_cache.redis_port": ("7000", "performance_optimization.redis_url", "redis://localhost:7000/1"),
    "persistent_cache.redis_db": ("3", "performance_optimization.redis_url", "redis://localhost:6379/3"),
    "persistent_cache.redis_password": ("p@s", "performance_optimization.redis_url", "redis://:p%40s@localhost:6379/1"),
    "persistent_cache.default_ttl": ("43200", "performance_optimization.cache_ttl_days", 0.5),
    "persistent_cache.enable_compression": ("false", "performance_optimization.enable_result_compression", False),
    "persistent_cache.fallback_to_memory": ("true", None, None),
    "database_pool.max_connections": ("6", "performance_optimization.database_connection_pool_size", 6),
    "database_pool.min_connections": ("2", None, None),
    "database_pool.connection_timeout": ("12", "performance_optimization.database_timeout_seconds", 12.0),
    "database_pool.max_idle_time": ("60", None, None),
    "database_pool.batch_size": ("50", "performance_optimization.database_batch_size", 50),
    "work_stealing.num_workers": ("6", "performance_optimization.worker_pool_size", 6),
    "work_stealing.work_steal_threshold": ("5", "performance_optimization.work_steal_threshold", 5),
    "work_stealing.max_steal_attempts": ("3", None, None),
    "streaming.chunk_size": ("20", "streaming.chunk_size", 20),
    "streaming.buffer_size": ("100", None, None),
    "streaming.update_interval": ("4", "performance_optimization.progressive_feedback_interval", 4.0),
    "streaming.enable_progress_callbacks": ("true", None, None),
    "memory_management.enable_memory_monitoring": ("true", None, None),
    "memory_management.memory_threshold_mb": ("900", "performance_optimization.memory_pressure_threshold_mb", 900),
    "memory_management.gc_interval": ("5", None, None),
    "monitoring.enable_detailed_profiling": ("false", "profiling.slowest_kept", 0),
    "enabled": ("true", None, None),
    "enable_connection_pooling": ("true", None, None),
    "enable_async_database": ("true", None, None),
    "enable_streaming": ("false", "performance_optimization.enable_streaming_results", False),
    "enable_performance_monitoring": ("false", "performance_optimization.enable_performance_profiling", False),
    "connection_timeout_seconds": ("13", "llm.connect_timeout_seconds", 13.0),
    "enable_memory_tracking": ("true", None, None),
    "enable_detailed_profiling": ("false", "profiling.slowest_kept", 0),
    "max_steal_attempts": ("3", None, None),
}


def settings_of(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "old.yaml"
    file.write_text(text)
    return load(path=file, env={})


def nested_text(name: str, value: str) -> str:
    section, found, leaf = name.partition(".")
    inner = f"  {section}:\n    {leaf}: {value}\n" if found else f"  {section}: {value}\n"
    return f"performance_optimization:\n{inner}"


def check_meaning(settings: Settings, old: str, today: str | None, meant: object, line: int) -> None:
    (remark,) = settings.remarks
    if today is None:
        assert settings == Settings()
        assert f"Without meaning today: {old} (line {line}): " in remark
        assert "Write instead" not in remark
    else:
        assert dict(settings.items())[today] == meant
        assert settings.origin(today) == f"old.yaml:{line} as {old}"
        assert f"  {today.partition('.')[2]}: " in remark
        assert f"# {old} (line {line})" in remark or "redis" in old


@pytest.mark.parametrize("name", PERFORMANCE)
def test_each_key_of_the_section_performance_is_read_or_named(tmp_path: Path, name: str) -> None:
    value, today, meant = PERFORMANCE[name]
    settings = settings_of(tmp_path, f"performance:\n  {name}: {value}\n")
    check_meaning(settings, f"performance.{name}", today, meant, 2)


@pytest.mark.parametrize("name", NESTED)
def test_each_key_of_the_nested_form_is_read_or_named(tmp_path: Path, name: str) -> None:
    value, today, meant = NESTED[name]
    settings = settings_of(tmp_path, nested_text(name, value))
    check_meaning(settings, f"performance_optimization.{name}", today, meant, 3 if "." in name else 2)


def test_every_old_name_means_a_setting_that_there_is() -> None:
    assert set(legacy.RENAMED.values()) <= set(known_keys())
    assert not set(legacy.RENAMED) & set(known_keys())
    assert not set(legacy.MEANINGLESS) & set(known_keys())


def test_one_warning_has_the_lines_to_write_and_they_mean_the_same(tmp_path: Path) -> None:
    text = "performance:\n" + "".join(f"  {name}: {value}\n" for name, (value, _, _) in PERFORMANCE.items())
    settings = settings_of(tmp_path, text)
    (remark,) = settings.remarks
    lines = [
        line for line in remark.splitlines()
        if line.startswith("  ") or (line.endswith(":") and " " not in line)
    ]  # fmt: skip
    (tmp_path / "new.yaml").write_text("\n".join(lines))
    assert load(path=tmp_path / "new.yaml", env={}) == settings
    assert sum("Without meaning today" in line for line in remark.splitlines()) == 4


def test_the_key_of_today_wins_also_with_nothing_and_no_and_it_is_said(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        "performance:\n  max_llm_retries: 5\n  parallel_processing: true\n"
        "performance_optimization:\n  max_llm_retries: 0\n  enable_work_stealing: false\n",
    )
    assert settings.performance_optimization.max_llm_retries == 0
    assert settings.performance_optimization.enable_work_stealing is False
    (remark,) = settings.remarks
    assert (
        "Passed over: performance.max_llm_retries (line 2): "
        "performance_optimization.max_llm_retries (line 5) wins" in remark
    )
    assert "Passed over: performance.parallel_processing (line 3)" in remark


def test_the_nested_form_wins_over_the_section_performance(tmp_path: Path) -> None:
    text = "performance:\n  max_worker_threads: 3\n" + nested_text("work_stealing.num_workers", "9")
    settings = settings_of(tmp_path, text)
    assert settings.performance_optimization.worker_pool_size == 9
    assert "Passed over: performance.max_worker_threads (line 2)" in settings.remarks[0]


def test_a_limit_of_memory_that_is_off_is_out_of_reach(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "performance:\n  max_memory_mb: 100\n  limit_memory_usage: false\n")
    assert settings.performance_optimization.memory_pressure_threshold_mb == 1024 * 1024
    assert "performance.limit_memory_usage is off" in settings.remarks[0]


def test_a_pool_that_is_smaller_than_the_minimum_of_today_is_still_understood(tmp_path: Path) -> None:
    pool = settings_of(tmp_path, "performance:\n  max_parallel_llm_requests: 2\n").performance_optimization
    assert (pool.llm_connection_pool_size, pool.llm_connection_pool_min_size) == (2, 2)


def test_the_parts_of_a_redis_address_make_a_url_and_its_password_is_not_told(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        "performance_optimization:\n  persistent_cache:\n    redis_host: cache.example\n    redis_port: 7000\n"
        "    redis_db: 0\n    redis_password: 'hunter2 /@:'\n",
    )
    assert settings.redis_url == "redis://:hunter2%20%2F%40%3A@cache.example:7000/0"
    assert "hunter2" not in str(settings.remarks) + str(settings.origins)
    assert "redis://:***@cache.example:7000/0" in settings.remarks[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "performance:\n  max_worker_threads: many\n",
            (
                "performance_optimization.worker_pool_size: expected a whole number, got 'many' "
                "(old.yaml:2 as performance.max_worker_threads)"
            ),
        ),
        (
            "performance:\n  max_worker_threads: 0\n",
            (
                "performance_optimization.worker_pool_size: expected a number from 1 to 1000, got '0' "
                "(old.yaml:2 as performance.max_worker_threads)"
            ),
        ),
        (
            "performance:\n  max_worker_thread: 3\n",
            "old.yaml:2: unknown setting 'performance.max_worker_thread'; did you mean performance.max_worker_threads?",
        ),
        (
            "performance:\n  limit_memory_usage: perhaps\n",
            "performance.limit_memory_usage: expected true or false, got 'perhaps' (old.yaml:2)",
        ),
        (
            "performance:\n  chunk_size: [1]\n",
            "performance.chunk_size: expected a single value, got a list or section (old.yaml:2)",
        ),
        (
            nested_text("persistent_cache.redis_port", "70000"),
            (
                "performance_optimization.persistent_cache.redis_port: expected a number from 0 to 65535, got '70000' "
                "(old.yaml:3)"
            ),
        ),
        (
            nested_text("persistent_cache.redis_host", "redis://x"),
            (
                "performance_optimization.persistent_cache.redis_host: expected the name or address of a machine, "
                "got 'redis://x' (old.yaml:3)"
            ),
        ),
        ("performance_optimization:\n  streaming: 3\n", "old.yaml:2: expected `key: value` lines"),
        (
            "performance:\n  retry_base_delay: 60\n",
            (
                "performance_optimization.retry_base_delay (old.yaml:2 as performance.retry_base_delay): its value "
                "must not exceed performance_optimization.retry_max_delay, but 60 > 30 (default)"
            ),
        ),
    ],
)
def test_an_old_name_with_a_wrong_value_is_refused_with_both_names(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, text)
    assert str(caught.value) == message


def test_an_old_name_as_a_variable_is_told_todays_name() -> None:
    with pytest.raises(ConfigError, match=r"did you mean THEMES_PERFORMANCE_OPTIMIZATION__WORKER_POOL_SIZE\?"):
        load(env={"THEMES_PERFORMANCE__MAX_WORKER_THREADS": "3"})


def test_a_command_says_it_once_also_where_it_starts_others(tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text("performance:\n  max_worker_threads: 3\n")
    env = os.environ | {"THEMES_CONFIG": str(file), "THEMES_STATE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "scripts.main", "config", "show", "--json"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=180)
    assert run.stderr.count("performance.max_worker_threads") == 1
    assert json.loads(run.stdout)["performance_optimization.worker_pool_size"]["value"] == 3
    env["THEMES_NOTED"] = "1"  # as a command sets it for the processes that it starts
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=180)
    assert run.stderr == ""
