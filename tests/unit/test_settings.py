import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as each
from hypothesis import strategies as st

from config.contradictions import _PAIRS
from config.errors import ConfigError
from config.sections import PerformanceSettings
from config.settings import DEFAULT_FILE, KNOWN_VARIABLES, Settings, known_keys, load, problems
from config.teams import TeamBudget
from config.values import Price, Secret
from config.yaml_file import MAX_FILE_BYTES

#: DESIGN section 8: names and defaults that users rely on.
CONTRACT = {
    "llm_connection_pool_size": 15,
    "llm_connection_pool_min_size": 5,
    "database_connection_pool_size": 20,
    "max_concurrent_web_requests": 25,
    "enable_persistent_cache": True,
    "redis_url": "redis://localhost:6379/1",
    "max_memory_cache_mb": 512,
    "cache_ttl_days": 7,
    "enable_work_stealing": True,
    "worker_pool_size": 12,
    "enable_streaming_results": True,
    "database_batch_size": 100,
    "enable_result_compression": True,
    "enable_performance_profiling": True,
    "memory_pressure_threshold_mb": 1024,
}


def from_text(tmp_path: Path, text: str | bytes, **env: str) -> Settings:
    file = tmp_path / "my.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path=file, env=env)


def refusal(tmp_path: Path, text: str | bytes, **env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        from_text(tmp_path, text, **env)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- the file that we ship ---


def test_the_shipped_file_has_every_key_with_its_default_in_the_order_of_the_code() -> None:
    loaded = yaml.safe_load(DEFAULT_FILE.read_text())
    keys = []
    for section, value in loaded.items():
        keys += [f"{section}.{name}" for name in value] if isinstance(value, dict) else [section]
    assert keys == list(known_keys())
    assert load(env={}) == Settings()
    assert not load(env={}).origins


def test_every_key_of_the_shipped_file_has_a_comment_above_it() -> None:
    lines = DEFAULT_FILE.read_text().splitlines()
    bare = [
        line
        for above, line in pairwise(lines)
        if re.match(r"(  [a-z]|state_dir)", line) and not re.match(r"\s*# \S", above)
    ]
    assert bare == []


def test_the_shipped_file_changed_in_one_place_says_that_this_one_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "config.yaml"
    copy.write_text(DEFAULT_FILE.read_text().replace("lease_seconds: 15", "lease_seconds: 16"))
    monkeypatch.setattr("config.settings.DEFAULT_FILE", copy)
    assert list(load(env={}).origins) == ["work.lease_seconds"]


@pytest.mark.parametrize(("key", "value"), CONTRACT.items())
def test_the_contract_of_performance_optimization_holds(key: str, value: object) -> None:
    found = getattr(PerformanceSettings(), key)
    assert found == value
    assert isinstance(found, bool) == isinstance(value, bool)


@pytest.mark.parametrize("key", [key for key, value in CONTRACT.items() if isinstance(value, bool)])
def test_an_explicit_false_counts(tmp_path: Path, key: str) -> None:
    settings = from_text(tmp_path, f"performance_optimization:\n  {key}: false\n")
    assert getattr(settings.performance_optimization, key) is False


# --- where values come from ---


def test_the_command_line_wins_over_the_environment_over_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("work:\n  lease_seconds: 20\n  max_chunk_size: 21\n  max_deliveries: 4\n")
    env = {"THEMES_WORK__LEASE_SECONDS": "30", "THEMES_WORK__MAX_CHUNK_SIZE": "31"}
    settings = load(path=file, env=env, overrides={"work.lease_seconds": "40"})
    assert {key: (value, settings.origin(key)) for key, value in settings.items() if key.startswith("work.")} == {
        "work.max_chunk_size": (31, "environment THEMES_WORK__MAX_CHUNK_SIZE"),
        "work.lease_seconds": (40.0, "command line"),
        "work.heartbeat_seconds": (4.0, "default"),
        "work.sweep_interval_seconds": (2.0, "default"),
        "work.max_deliveries": (4, "my.yaml:4"),
        "work.destination_attempts": (2, "default"),
        "work.shutdown_grace_seconds": (8.0, "default"),
        "work.max_unwritten_results": (20_000, "default"),
        "work.wedged_after_seconds": (30.0, "default"),
    }
    assert settings.is_set("work.max_deliveries")
    assert not settings.is_set("work.heartbeat_seconds")


@pytest.mark.parametrize(("variable", "key"), KNOWN_VARIABLES.items())
def test_well_known_variables_are_read_and_an_empty_one_is_not_there(variable: str, key: str) -> None:
    settings = load(env={variable: "redis://elsewhere:1/2"})
    assert str(dict(settings.items())[key]).replace(":/", "://").replace(":///", "://") == "redis://elsewhere:1/2"
    assert settings.origin(key) == f"environment {variable}"
    assert load(env={variable: ""}).origin(key) == "default"


def test_our_own_name_of_a_variable_wins_over_the_well_known_one() -> None:
    env = {"REDIS_URL": "redis://a", "THEMES_PERFORMANCE_OPTIMIZATION__REDIS_URL": "redis://b"}
    assert load(env=env).redis_url == "redis://b"


def test_themes_config_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("llm:\n  model: mine\n")
    assert load(env={"THEMES_CONFIG": str(tmp_path / "my.yaml")}).llm.model == "mine"


@pytest.mark.parametrize("text", ["", "# nothing\n", "work:\n", "work: {}\n", "\ufeffwork: null\n"])
def test_an_empty_file_or_section_leaves_the_defaults(tmp_path: Path, text: str) -> None:
    assert from_text(tmp_path, text) == Settings()


def test_what_is_not_set_follows_what_is(tmp_path: Path) -> None:
    settings = from_text(tmp_path, f"state_dir: {tmp_path}\n", REDIS_URL="redis://one/1")
    assert settings.broker_url == "redis://one/1"
    assert settings.database_url == f"sqlite+aiosqlite:///{tmp_path}/themes.db"


# --- what is wrong ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "work:\n  lease_second: 3\n",
            "my.yaml:2: unknown setting 'work.lease_second'; did you mean work.lease_seconds?",
        ),
        ("wrok:\n  lease_seconds: 3\n", "my.yaml:1: unknown section 'wrok'; did you mean work?"),
        ("lease_seconds: 3\n", "my.yaml:1: unknown section 'lease_seconds'; did you mean work.lease_seconds?"),
        (
            "llm:\n  lease_seconds: 3\n",
            "my.yaml:2: unknown setting 'llm.lease_seconds'; did you mean work.lease_seconds?",
        ),
        ("xyzzy: 1\n", "my.yaml:1: unknown section 'xyzzy'; `themes config show` lists all of them"),
        ("work:\n  lease_seconds: soon\n", "work.lease_seconds: expected a number, got 'soon' (my.yaml:2)"),
        ("work:\n  max_chunk_size: 1.5\n", "work.max_chunk_size: expected a whole number, got '1.5' (my.yaml:2)"),
        ("work:\n  max_chunk_size: 12:30\n", "work.max_chunk_size: expected a whole number, got '12:30' (my.yaml:2)"),
        ("work:\n  max_chunk_size: true\n", "work.max_chunk_size: expected a whole number, got 'true' (my.yaml:2)"),
        ("work:\n  max_chunk_size: 0\n", "work.max_chunk_size: expected a number from 1 to 10000, got '0' (my.yaml:2)"),
        (
            "work:\n  max_chunk_size: [1]\n",
            "work.max_chunk_size: expected a single value, got a list or section (my.yaml:2)",
        ),
        ("work:\n  max_chunk_size:\n", "work.max_chunk_size: expected a value, got nothing (my.yaml:2)"),
        ("work:\n  lease_seconds: .nan\n", "work.lease_seconds: expected a number, got '.nan' (my.yaml:2)"),
        ("work:\n  lease_seconds: nan\n", "work.lease_seconds: expected a finite number, got 'nan' (my.yaml:2)"),
        ("work:\n  lease_seconds: 1e999\n", "work.lease_seconds: expected a finite number, got '1e999' (my.yaml:2)"),
        ("redis:\n  server: mine\n", "redis.server: expected one of auto, bundled, system, got 'mine' (my.yaml:2)"),
        ("work: 3\n", "my.yaml:1: expected `key: value` lines"),
        ("- work\n", "my.yaml:1: expected `key: value` lines"),
        ("work:\n  ? [a]\n  : 1\n", "my.yaml:2: a key must be a plain word"),
        ("llm:\n  model: a\n  model: b\n", "my.yaml:3: 'model' stands already in line 2; keep one"),
        ("llm:\n  model: a\nllm:\n  model: b\n", "my.yaml:3: 'llm' stands already in line 1; keep one"),
        ("llm:\n  model: &a x\n  base_url: *a\n", "my.yaml:3: YAML aliases are not allowed; write the value out"),
        ("llm:\n\tmodel: x\n", "my.yaml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 2\n", "my.yaml:2: not valid YAML: but found another document"),
        ("a: \x07\n", "my.yaml: not valid YAML: unacceptable character #x0007"),
    ],
)
def test_an_error_names_its_place_and_the_mend(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(tmp_path, text).startswith(message)


@pytest.mark.parametrize("word", ["yes", "On", "TRUE", "1", "no", "OFF", "False", "0"])
def test_every_word_for_a_truth_value_is_understood(tmp_path: Path, word: str) -> None:
    settings = from_text(tmp_path, f"performance_optimization:\n  enable_work_stealing: {word}\n")
    assert settings.performance_optimization.enable_work_stealing == (word.lower() in {"yes", "on", "true", "1"})


def test_a_truth_value_is_no_other_word(tmp_path: Path) -> None:
    message = refusal(tmp_path, "performance_optimization:\n  enable_work_stealing: nope\n")
    assert "expected true or false, got 'nope'" in message


def test_text_stays_what_was_written(tmp_path: Path) -> None:
    for text in ("NO", "12:30", "1_000", "0x10", "2026-01-01", "=", '"null"'):
        assert from_text(tmp_path, f"llm:\n  model: {text}\n").llm.model == text.strip('"')


def test_a_number_with_more_digits_than_a_float_can_hold_is_refused_in_few_words(tmp_path: Path) -> None:
    message = refusal(tmp_path, f"work:\n  max_chunk_size: {'9' * 4000}\n")
    assert "expected a number from 1 to 10000" in message
    assert len(message) < 200


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        (
            "performance_optimization:\n  llm_connection_pool_size: 4\n",
            "llm_connection_pool_min_size (default)",
            "4 (my.yaml:2)",
        ),
        ("performance_optimization:\n  retry_base_delay: 60\n", "retry_base_delay (my.yaml:2)", "60 > 30 (default)"),
        ("work:\n  heartbeat_seconds: 8\n", "work.heartbeat_seconds (my.yaml:2): twice its value", "16 > 15 (default)"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, text: str, first: str, second: str) -> None:
    message = refusal(tmp_path, text)
    assert first in message
    assert message.endswith((second, f"{second})"))


#: Every pair of config/contradictions.py, with values that cannot hold together.
CONTRADICTIONS = {
    "performance_optimization.llm_connection_pool_min_size": (
        "9",
        "performance_optimization.llm_connection_pool_size",
        "8",
    ),
    "performance_optimization.retry_base_delay": ("9", "performance_optimization.retry_max_delay", "8"),
    "work.heartbeat_seconds": ("5", "work.lease_seconds", "8"),
    "performance_optimization.database_batch_size": ("200", "work.max_unwritten_results", "100"),
    "llm.adaptive_concurrency_min": ("9", "performance_optimization.llm_connection_pool_size", "8"),
    "llm.request_burst": ("61", "llm.requests_per_minute", "60"),
    "database.flush_interval_seconds": ("2", "performance_optimization.progressive_feedback_interval", "1"),
    "streaming.flush_interval_seconds": ("2", "performance_optimization.progressive_feedback_interval", "1"),
    "work.lease_seconds": ("90", "celery.visibility_timeout_seconds", "60"),
    "streaming.chunk_size": ("200", "streaming.max_events_per_job", "100"),
    "llm.connect_timeout_seconds": ("20", "llm.request_timeout_seconds", "10"),
}


def test_every_contradiction_has_its_example() -> None:
    assert [pair.low for pair in _PAIRS] == list(CONTRADICTIONS)
    assert [pair.high for pair in _PAIRS] == [high for _, high, _ in CONTRADICTIONS.values()]


@pytest.mark.parametrize("low", CONTRADICTIONS)
def test_a_contradiction_is_refused_with_both_places_and_its_equal_is_not(tmp_path: Path, low: str) -> None:
    value, high, bound = CONTRADICTIONS[low]
    section, _, name = low.partition(".")
    variable = f"THEMES_{high.upper().replace('.', '__')}"
    message = refusal(tmp_path, f"{section}:\n  {name}: {value}\n", **{variable: bound})
    assert message.startswith(f"{low} (my.yaml:2): ")
    assert f"must not exceed {high}, but " in message
    assert message.endswith(f"(environment {variable})")
    equal = str(float(bound) / 2) if low == "work.heartbeat_seconds" else bound
    assert from_text(tmp_path, f"{section}:\n  {name}: {equal}\n", **{variable: bound})


def test_an_endpoint_with_a_burst_above_its_rate_is_refused(tmp_path: Path) -> None:
    text = "llm:\n  endpoints:\n    east: {base_url: http://x/v1, requests_per_minute: 60, request_burst: 61}\n"
    assert refusal(tmp_path, text) == (
        "llm.endpoints.east.request_burst: its value must not exceed llm.endpoints.east.requests_per_minute, "
        "but 61 > 60 (my.yaml:2)"
    )


def test_a_password_in_a_wrong_place_is_not_repeated(tmp_path: Path) -> None:
    for text in (
        "redis:\n  server: redis://:hunter2@host/1\n",
        "work:\n  lease_seconds: redis://me:hunter2@host\n",
        "redis://:hunter2@host: 1\n",
        "llm:\n  'https://x/v1?api_key=hunter2': 1\n",
    ):
        message = refusal(tmp_path, text)
        assert "hunter2" not in message
        assert "***" in message


@pytest.mark.parametrize("variable", ["THEMES_WORK__LEASE_SECOND", "THEMES_LEASE_SECONDS"])
def test_an_unknown_variable_is_refused_with_the_nearest_name(variable: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(env={variable: "3"})
    assert str(caught.value).startswith(f"environment {variable}: no such setting")
    assert str(caught.value).endswith("did you mean THEMES_WORK__LEASE_SECONDS?")


def test_an_unknown_option_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"command line: unknown setting 'llm.modle'; did you mean llm.model\?"):
        load(env={}, overrides={"llm.modle": "x"})


def test_files_that_cannot_be_settings_are_refused(tmp_path: Path) -> None:
    assert "not UTF-8 text" in refusal(tmp_path, b"llm:\n  model: caf\xe9\n")
    assert "not UTF-8 text" in refusal(tmp_path, "llm:\n".encode("utf-16"))
    assert f"larger than {MAX_FILE_BYTES} bytes" in refusal(tmp_path, b"#" * (2 * 1024 * 1024))
    assert "nested too deeply" in refusal(tmp_path, "work: " + "[" * 5_000 + "]" * 5_000)
    assert "not valid YAML" in refusal(tmp_path, bytes(range(32)) * 20)
    for path in (tmp_path, tmp_path / "none.yaml", Path("a\0b")):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(path=path, env={})


def test_an_alias_bomb_costs_nothing(tmp_path: Path) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "aliases are not allowed" in refusal(tmp_path, bomb)


def test_problems_finds_all_of_them_and_load_the_first(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(
        "work:\n  lease_seconds: soon\n  heartbeat_seconds: 9\n  lease_seconds: 3\nllm: [1]\nxyzzy: 1\n"
        "performance_optimization:\n  retry_base_delay: 60\n"
    )
    found = [str(problem) for problem in problems(file, {"THEMES_X": "1"})]
    assert len(found) == 6
    for part in ("my.yaml:4", "my.yaml:5", "my.yaml:6", "THEMES_X", "(my.yaml:2)", "retry_base_delay (my.yaml:8)"):
        assert sum(part in problem for problem in found) == 1, part
    with pytest.raises(ConfigError):
        load(path=file, env={})
    assert problems(env={}) == []


# --- prices ---


def test_prices_are_read_from_the_file_and_the_environment(tmp_path: Path) -> None:
    text = "llm:\n  prices:\n    a-model: {input_usd: 0.15, output_usd: 1}\n"
    assert from_text(tmp_path, text).llm.prices == {"a-model": Price(0.15, 1.0)}
    env = {"THEMES_LLM__PRICES": "{b: {input_usd: 0, output_usd: 2_000}}"}
    assert from_text(tmp_path, text, **env).llm.prices == {"b": Price(0.0, 2000.0)}


@pytest.mark.parametrize(
    "prices",
    [
        "3",
        "[a]",
        "{a: 1}",
        "{a: {input_usd: 1}}",
        "{a: {input_usd: 1, output_usd: 1, x: 1}}",
        "{a: {input_usd: -1, output_usd: 1}}",
        "{a: {input_usd: x, output_usd: 1}}",
        "{a: {input_usd: nan, output_usd: 1}}",
        "{a: {input_usd: [1], output_usd: 1}}",
        "{? [a] : {input_usd: 1, output_usd: 1}}",
        "{a: {? [x] : 1, output_usd: 1}}",
        "{a: {input_usd: 1, output_usd: 1}, a: {input_usd: 2, output_usd: 1}}",
        "{a: {input_usd: 1, input_usd: 2, output_usd: 1}}",
    ],
)
def test_a_price_that_is_none_is_refused_with_its_place(tmp_path: Path, prices: str) -> None:
    message = refusal(tmp_path, f"llm:\n  prices: {prices}\n")
    assert message.startswith("llm.prices")
    assert message.endswith("(my.yaml:2)")


@pytest.mark.parametrize("prices", ["{", "[" * 5_000, "\x07"])
def test_prices_that_are_no_yaml_are_refused(prices: str) -> None:
    with pytest.raises(ConfigError, match="THEMES_LLM__PRICES"):
        load(env={"THEMES_LLM__PRICES": prices})


# --- secrets ---


def test_no_secret_is_in_the_repr_of_the_settings() -> None:
    env = {
        "OPENAI_API_KEY": "hunter2",
        "REDIS_URL": "redis://:hunter2@host",
        "CELERY_BROKER_URL": "redis://:hunter2@host",
        "DATABASE_URL": "postgresql://me:hunter2@host/db",
        "THEMES_DASHBOARD__BASIC_AUTH": "me:hunter2",
    }
    settings = load(env=env)
    assert "hunter2" not in repr(settings) + str(settings) + repr(settings.origins)
    assert settings.llm.api_key == "hunter2"
    assert repr(Secret("x")) == "'***'"


# --- properties ---


@each(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(known_keys())), st.text(max_size=20), max_size=4))
def test_whatever_the_text_of_a_value_only_a_config_error_is_raised(overrides: dict[str, str]) -> None:
    try:
        settings = load(env={}, overrides=overrides)
    except ConfigError as exc:
        assert "command line" in str(exc)  # noqa: PT017  # a text that fits is as good
    else:
        assert all(settings.origin(key) == "command line" for key in overrides)


_scraps = st.lists(
    st.sampled_from(
        ["work", "llm", ":", ": ", "\n", "\n  ", "- ", "[", "{", "}", "]", "&a ", "*a", "!!int ", "? ", "|\n", "1"]
    ),
    max_size=20,
).map("".join)


@each(deadline=None)
@given(data=st.binary(max_size=100) | _scraps.map(str.encode))
def test_whatever_the_bytes_of_a_file_only_config_errors_are_found(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(data)
    assert all(isinstance(problem, ConfigError) and "\n" not in str(problem) for problem in problems(file, {}))


@pytest.mark.parametrize(
    "env",
    [
        {"THEMES_LLM__TIER": "batch"},
        {"THEMES_LLM__ENDPOINTS": "{a: {base_url: 'http://a/v1', tier: batch}}"},
    ],
)
def test_batches_need_the_persistent_cache(env: dict[str, str]) -> None:
    load(env=env)
    with pytest.raises(ConfigError, match="batch needs performance_optimization.enable_persistent_cache"):
        load(env=env | {"THEMES_PERFORMANCE_OPTIMIZATION__ENABLE_PERSISTENT_CACHE": "false"})


@pytest.mark.parametrize(
    "url", ["ftp://h/", "https://", "https://user:hunter2@/x", "http://h:x1/", "http://[::1/", "http://h:0/"]
)
def test_a_webhook_s_address_has_a_host_and_is_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"webhook\.url .*expected an address") as refused:
        from_text(tmp_path, "", THEMES_WEBHOOK__URL=url, THEMES_WEBHOOK__SECRET="whsec_czNjcjN0")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("budgets", "says"),
    [
        ("[research]", "expected `team: "),
        ("{research: 5}", "expected `team: "),
        ("{research: {}}", "expected `team: "),
        ("{research: {usd_per_week: 5}}", "expected `team: "),
        ("{a team: {usd_per_day: 5}}", "a team's name has up to 40"),
        ("{research: {usd_per_day: much}}", "teams.budgets.research.usd_per_day: expected a number"),
        ("{research: {usd_per_day: 0}}", "above 0 and up to 1,000,000, got 0"),
        ("{research: {usd_per_month: -1}}", "above 0"),
        ("{research: {usd_per_month: 2000000}}", "above 0"),
        # Less than Redis counts: it would be a limit of nothing.
        ("{research: {usd_per_day: 0.0000000001}}", "above 0"),
    ],
)
def test_a_team_s_budget_that_is_none_is_refused_with_its_place(tmp_path: Path, budgets: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as refused:
        from_text(tmp_path, "", THEMES_TEAMS__BUDGETS=budgets)
    assert "environment THEMES_TEAMS__BUDGETS" in str(refused.value)


def test_a_team_has_a_budget_for_the_day_or_the_month_or_both(tmp_path: Path) -> None:
    settings = from_text(tmp_path, "teams: {budgets: {a: {usd_per_day: 5}, b: {usd_per_day: 1, usd_per_month: 20}}}")
    assert dict(settings.teams.budgets) == {"a": TeamBudget(5.0, None), "b": TeamBudget(1.0, 20.0)}
