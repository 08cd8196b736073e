"""No setting that nothing reads, and a test for what each one changes."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from config.settings import KNOWN_VARIABLES, known_keys

ROOT = Path(__file__).parents[2]
CODE = "\n".join(
    path.read_text() for folder in ("tasks", "workers", "scripts") for path in (ROOT / folder).rglob("*.py")
)
#: Names that many things have: only with their section do they name the setting.
COMMON = {
    "enabled",
    "server",
    "host",
    "port",
    "url",
    "model",
    "codec",
    "base_url",
    "api_key",
    "chunk_size",
    "level",
    "format",
    "request_timeout_seconds",
}

_EFFECTS = "tests/integration/test_effects.py"
_BORDERS = "tests/integration/test_borders.py"
_COURSE = "tests/integration/test_batch_course.py"
_TIERS = "tests/integration/test_tiers.py"
_ENDPOINTS = "tests/integration/test_endpoints.py"
_WHO = f"{_EFFECTS}::test_base_url_api_key_and_model_are_who_is_asked_and_what_with"
_DATABASE = f"{_EFFECTS}::test_database_connection_pool_size_and_database_timeout_seconds_bound_readers"
_PAUSES = f"{_EFFECTS}::test_pauses_between_tries_grow_from_retry_base_delay_to_retry_max_delay"
_CODEC = f"{_EFFECTS}::test_completions_are_stored_by_cache_codec_or_as_they_are"
_NOTICES = "tests/e2e/test_webhook.py::test_a_job_s_end_and_its_pause_are_posted_signed_until_they_are_taken"
_BATCHES = "tests/integration/test_pipeline.py::test_smaller_batches_ask_more_often_and_give_the_same_profile"
_ADAPTIVE = f"{_EFFECTS}::test_adaptive_concurrency_goes_down_to_adaptive_concurrency_min_or_stays"
_RECYCLED = f"{_ENDPOINTS}::test_connections_are_opened_once_recycled_by_age_and_closed_when_idle"
_BOUNDS = "tests/integration/test_llm_client.py::test_one_deadline_and_one_size_bound_every_answer"
_LIMIT = "tests/integration/test_rate_limit.py::test_a_limit_that_fits_the_server_s_is_never_refused"
_TIME = "tests/integration/test_forecast.py::test_the_time_comes_from_what_the_workers_have_measured_or_from_the_limits"
_KILLED = "tests/e2e/test_jobs.py::test_the_destinations_of_a_killed_worker_come_back_by_themselves"
_BROKER = f"{_EFFECTS}::test_celery_gets_its_broker_url_and_visibility_timeout_seconds"
_CHUNKS = "tests/integration/test_sweeper.py::test_events_travel_in_chunks_as_soon_as_the_settings_say"
_KEY = "tests/unit/test_prompts.py::test_spellings_of_one_destination_share_a_key_and_others_do_not"
_WEB = "tests/integration/test_web_evidence.py"
_PAGE = f"{_WEB}::test_a_page_is_found_under_the_title_that_speaks_of_the_country_and_remembered_for_all_workers"
_HOST = "tests/unit/test_flower.py::test_a_host_that_is_no_address_of_this_machine_is_one_clear_line"

#: Setting -> the test that shows what it changes.
EFFECTS = {
    "state_dir": f"{_EFFECTS}::test_state_dir_is_where_the_database_is",
    "performance_optimization.llm_connection_pool_size": (
        f"{_EFFECTS}::test_llm_connection_pool_size_bounds_what_is_asked_at_once"
    ),
    "performance_optimization.llm_connection_pool_min_size": (
        f"{_EFFECTS}::test_llm_connection_pool_min_size_connections_stand_before_the_first_prompt"
    ),
    "performance_optimization.database_connection_pool_size": _DATABASE,
    "performance_optimization.enable_persistent_cache": (
        f"{_EFFECTS}::test_without_enable_persistent_cache_no_completion_is_in_redis"
    ),
    "performance_optimization.redis_url": ("tests/e2e/test_commands.py::test_what_cannot_work_is_one_clear_line"),
    "performance_optimization.max_memory_cache_mb": (
        f"{_EFFECTS}::test_max_memory_cache_mb_is_what_a_process_remembers_itself"
    ),
    "performance_optimization.cache_ttl_days": f"{_EFFECTS}::test_completions_leave_redis_after_cache_ttl_days",
    "performance_optimization.enable_work_stealing": (
        "tests/e2e/test_toggles.py::test_enable_work_stealing_off_steals_nothing"
    ),
    "performance_optimization.worker_pool_size": (
        f"{_EFFECTS}::test_worker_pool_size_is_how_many_destinations_are_in_work_at_once"
    ),
    "performance_optimization.enable_streaming_results": (
        f"{_EFFECTS}::test_enable_streaming_results_decides_whether_a_job_has_a_stream"
    ),
    "performance_optimization.database_batch_size": (
        f"{_EFFECTS}::test_the_consumer_reads_database_batch_size_entries_at_once"
    ),
    "performance_optimization.enable_result_compression": _CODEC,
    "performance_optimization.enable_performance_profiling": (
        f"{_EFFECTS}::test_enable_performance_profiling_decides_whether_steps_are_measured"
    ),
    "performance_optimization.memory_pressure_threshold_mb": (
        "tests/integration/test_cache.py::test_a_process_under_memory_pressure_gives_up_half_of_the_cache"
    ),
    "performance_optimization.theme_batch_size": _BATCHES,
    "performance_optimization.enable_intelligent_batching": _BATCHES,
    "performance_optimization.max_llm_retries": (
        "tests/integration/test_llm_client.py::test_a_fault_that_stays_ends_after_the_set_number_of_retries"
    ),
    "performance_optimization.retry_base_delay": _PAUSES,
    "performance_optimization.retry_max_delay": _PAUSES,
    "performance_optimization.database_timeout_seconds": _DATABASE,
    "performance_optimization.progressive_feedback_interval": (
        "tests/integration/test_consumer.py::test_progress_is_told_at_most_once_an_interval_and_always_at_the_end"
    ),
    "performance_optimization.profile_interval_seconds": (
        f"{_EFFECTS}::test_profile_interval_seconds_is_the_time_between_two_reports"
    ),
    "performance_optimization.max_requests_per_connection": (
        f"{_EFFECTS}::test_a_connection_ends_after_max_requests_per_connection"
    ),
    "performance_optimization.health_check_interval_seconds": (
        f"{_EFFECTS}::test_every_health_check_interval_seconds_idle_connections_are_looked_after"
    ),
    "performance_optimization.max_streaming_chunk_size": (
        f"{_EFFECTS}::test_a_round_trip_of_events_has_max_streaming_chunk_size_bytes_at_most"
    ),
    "performance_optimization.work_steal_threshold": (
        "tests/unit/test_lanes.py::test_a_lane_with_fewer_than_work_steal_threshold_is_left_alone"
    ),
    "performance_optimization.max_concurrent_web_requests": (
        f"{_WEB}::test_no_more_than_max_concurrent_web_requests_are_made_at_once"
    ),
    "llm.base_url": _WHO,
    "llm.api_key": _WHO,
    "llm.model": _WHO,
    "llm.api_key_file": f"{_ENDPOINTS}::test_the_one_endpoint_s_key_may_stand_in_a_file",
    "llm.roles": f"{_ENDPOINTS}::test_each_role_asks_its_own_model_where_that_is_served",
    "llm.endpoints": f"{_ENDPOINTS}::test_endpoints_share_the_work_by_their_weight",
    "llm.extra_body": _KEY,
    "llm.headers": f"{_BORDERS}::test_headers_and_the_query_of_an_address_are_sent",
    "llm.temperature": _KEY,
    "llm.reasoning_effort": f"{_BORDERS}::test_an_effort_that_is_set_is_sent_and_changes_the_key",
    "llm.max_completion_tokens": f"{_BORDERS}::test_thoughts_stop_growing_at_the_set_bound",
    "llm.ca_file": (
        f"{_BORDERS}::test_a_certificate_of_its_own_is_refused_at_once_with_the_mend_and_trusted_when_named"
    ),
    "llm.connect_timeout_seconds": (
        f"{_EFFECTS}::test_a_server_that_takes_no_connection_is_given_up_after_connect_timeout_seconds"
    ),
    "llm.request_timeout_seconds": _BOUNDS,
    "llm.max_response_bytes": _BOUNDS,
    "llm.max_connection_age_seconds": _RECYCLED,
    "llm.idle_connection_seconds": _RECYCLED,
    "llm.hedge": f"{_ENDPOINTS}::test_hedging_takes_the_second_answer_where_the_first_is_late",
    "llm.flight_lease_seconds": (
        "tests/integration/test_shared_flight.py::test_a_prompt_whose_owner_is_lost_is_asked_by_a_waiter_within_a_lease"
    ),
    "llm.wait_for_endpoint_seconds": (f"{_ENDPOINTS}::test_an_endpoint_that_stays_away_too_long_fails_what_waited"),
    "llm.requests_per_minute": _LIMIT,
    "llm.request_burst": _LIMIT,
    "llm.tokens_per_minute": _TIME,
    "llm.probe_seconds": (
        "tests/integration/test_probes.py::"
        "test_one_call_of_all_processes_tries_a_long_wait_at_growing_intervals_and_its_answer_ends_it"
    ),
    "llm.learn_rate_limit": (
        "tests/integration/test_learnt_rate.py::"
        "test_two_processes_that_learn_are_refused_less_often_than_two_that_do_not"
    ),
    "llm.adaptive_concurrency": _ADAPTIVE,
    "llm.adaptive_concurrency_min": _ADAPTIVE,
    "webhook.url": _NOTICES,
    "webhook.secret": _NOTICES,
    "webhook.private_hosts": (
        "tests/e2e/test_webhook.py::test_a_notice_goes_to_no_private_host_that_is_not_named_and_waits_for_its_server"
    ),
    "webhook.timeout_seconds": "tests/e2e/test_webhook.py::test_a_server_that_hangs_is_left_after_timeout_seconds",
    "webhook.retry_hours": "tests/e2e/test_webhook.py::test_a_notice_that_nobody_takes_is_given_up_and_said",
    "teams.budgets": (
        "tests/e2e/test_budget.py::test_jobs_of_a_team_stop_at_its_budget_of_the_day_and_go_on_the_day_after"
    ),
    "llm.prices": "tests/e2e/test_budget.py::test_a_worker_whose_model_has_no_price_spends_nothing_and_says_so",
    "llm.prices_file": ("tests/unit/test_prices.py::test_the_setting_wins_over_the_file_and_the_file_over_the_list"),
    "llm.tier": f"{_TIERS}::test_a_call_is_bought_at_its_tier_and_booked_as_the_answer_says",
    "llm.flex_price_factor": f"{_TIERS}::test_a_call_is_bought_at_its_tier_and_booked_as_the_answer_says",
    "llm.priority_price_factor": f"{_TIERS}::test_a_call_is_bought_at_its_tier_and_booked_as_the_answer_says",
    "llm.flex_patience_seconds": (
        f"{_TIERS}::test_after_its_patience_a_call_is_standard_and_the_next_one_tries_flex_again"
    ),
    "llm.batch_price_factor": f"{_COURSE}::test_a_batch_is_booked_at_its_factor",
    "llm.batch_max_requests": f"{_COURSE}::test_a_batch_has_no_more_than_it_may",
    "llm.batch_max_mb": f"{_COURSE}::test_a_batch_has_no_more_than_it_may",
    "llm.batch_queue_requests": "tests/e2e/test_batches.py::test_more_questions_than_may_wait_come_in_turns",
    "llm.batch_form_seconds": f"{_COURSE}::test_questions_become_a_batch_when_no_more_come",
    "llm.batch_poll_seconds": f"{_COURSE}::test_a_batch_is_looked_at_as_often_as_is_set",
    "llm.batch_settle_seconds": f"{_COURSE}::test_a_list_that_lags_is_waited_for",
    "llm.batch_stragglers": "tests/e2e/test_batches.py::test_what_no_batch_answers_is_asked_otherwise",
    "llm.batch_keep_files": f"{_COURSE}::test_files_stay_where_that_is_wanted",
    "pipeline.lead_prompts": "tests/integration/test_leads.py::test_a_prompt_goes_ahead_where_that_brings_something",
    "cache.codec": _CODEC,
    "redis.enabled": "tests/e2e/test_run.py::test_a_verb_that_needs_redis_says_so_in_one_line_and_names_the_other_way",
    "redis.server": f"{_EFFECTS}::test_redis_server_says_which_program_is_started",
    "redis.socket_timeout_seconds": (
        "tests/integration/test_cache.py::test_redis_lost_in_the_middle_leaves_the_memory_and_comes_back_by_itself"
    ),
    "celery.broker_url": _BROKER,
    "celery.visibility_timeout_seconds": _BROKER,
    "work.max_chunk_size": f"{_EFFECTS}::test_a_chunk_has_max_chunk_size_destinations_at_most",
    "work.lease_seconds": _KILLED,
    "work.heartbeat_seconds": _KILLED,
    "work.sweep_interval_seconds": _KILLED,
    "work.max_deliveries": "tests/faults/test_llm.py::test_a_destination_that_kills_its_worker_every_time",
    "work.destination_attempts": (
        "tests/integration/test_chunks.py::test_an_error_that_may_pass_is_tried_again_and_paid_for_in_full"
    ),
    "work.shutdown_grace_seconds": (
        "tests/e2e/test_supervision.py::test_calls_that_take_longer_than_the_grace_time_do_not_keep_a_worker"
    ),
    "work.max_unwritten_results": "tests/integration/test_chunks.py::test_a_consumer_that_is_behind_is_waited_for",
    "work.wedged_after_seconds": (
        "tests/e2e/test_supervision.py::test_a_worker_that_consumes_nothing_is_replaced_and_that_is_counted"
    ),
    "database.url": f"{_EFFECTS}::test_database_url_is_where_the_database_is_instead",
    "database.flush_interval_seconds": f"{_EFFECTS}::test_the_consumer_waits_flush_interval_seconds_for_more",
    "pipeline.fields": "tests/e2e/test_fields.py::test_a_run_asks_for_the_fields_of_the_settings_or_the_option_s",
    "pipeline.prompts_dir": "tests/unit/test_prompts.py::test_a_folder_without_prompts_is_refused",
    "web_discovery.enabled": f"{_WEB}::test_a_profile_tells_what_was_read_and_which_citations_stand_there",
    "web_discovery.wikivoyage_url": _PAGE,
    "web_discovery.wikipedia_url": _PAGE,
    "web_discovery.brave_api_key": f"{_WEB}::test_a_search_with_a_key_names_more_pages",
    "web_discovery.brave_url": f"{_WEB}::test_a_search_with_a_key_names_more_pages",
    "web_discovery.request_timeout_seconds": f"{_WEB}::test_a_page_that_drips_ends_at_the_time_out",
    "web_discovery.max_page_bytes": f"{_WEB}::test_a_page_that_is_too_large_packed_or_not_or_no_text_is_left_out",
    "web_discovery.max_evidence_characters": f"{_WEB}::test_all_pages_of_a_destination_share_max_evidence_characters",
    "web_discovery.private_hosts": f"{_WEB}::test_a_host_in_the_own_network_is_not_asked_unless_it_was_named",
    "streaming.max_events_per_job": (
        "tests/integration/test_sweeper.py::test_events_travel_in_the_background_and_are_bounded"
    ),
    "streaming.chunk_size": _CHUNKS,
    "streaming.flush_interval_seconds": _CHUNKS,
    "profiling.slowest_kept": "tests/unit/test_observe.py::test_only_the_slowest_destinations_are_kept",
    "profiling.enable_traces": "tests/e2e/test_traces.py::test_a_destination_is_one_trace_from_enqueue_to_commit",
    "logging.level": "tests/unit/test_logs.py::test_the_setting_reaches_a_process",
    "logging.format": "tests/unit/test_logs.py::test_the_setting_reaches_a_process",
    "dashboard.host": _HOST,
    "dashboard.port": "tests/unit/test_flower.py::test_a_port_that_is_taken_is_one_clear_line",
    "dashboard.basic_auth": "tests/e2e/test_dashboard.py::test_with_a_password_the_pages_ask_for_it",
    "dashboard.show_answers": (
        "tests/e2e/test_actions.py::test_with_show_answers_who_is_logged_in_reads_what_could_not_be_used"
    ),
    "dashboard.max_watchers": (
        "tests/integration/test_sse.py::"
        "test_a_job_that_nobody_knows_is_404_and_too_many_watchers_are_asked_to_come_back"
    ),
}


def is_read(key: str) -> bool:
    """Whether some code takes the attribute, with its section before it where many things have that name."""
    section, _, name = key.rpartition(".")
    properties = {"performance_optimization.redis_url": "redis_url", "database.url": "database_url"}
    attribute = properties.get(key, name)
    before = (
        rf"\.?\b{section}" if attribute in COMMON - {"base_url", "api_key", "model", "request_timeout_seconds"} else ""
    )
    return re.search(rf"{before}\.{attribute}\b", CODE) is not None


@pytest.mark.parametrize("key", sorted(known_keys()))
def test_every_setting_is_read_by_the_code(key: str) -> None:
    assert is_read(key), f"nothing reads {key}"


def test_every_setting_names_the_test_of_its_effect() -> None:
    assert set(EFFECTS) == set(known_keys()), "EFFECTS names one test for each setting"


@pytest.mark.parametrize(("key", "node"), EFFECTS.items(), ids=list(EFFECTS))
def test_the_test_of_an_effect_exists_and_uses_the_setting(key: str, node: str) -> None:
    file, _, name = node.partition("::")
    text = source_of(file, name)
    assert text, f"{node}: there is no such test"
    assert any(re.search(pattern, text) for pattern in mentions(key)), f"{node} does not mention {key}"


def mentions(key: str) -> list[str]:
    """Patterns of the ways in which a test sets a setting."""
    section, _, name = key.rpartition(".")
    known = [variable for variable, one in KNOWN_VARIABLES.items() if one == key]
    patterns = [rf"\b{section.upper()}__{name.upper()}\b", rf"_{section.upper()}__{name.upper()}\b", *known]
    if section:
        patterns += [rf"\b{section}\.{name}\b", rf"{section}__{name}\b", rf"{section.title()}Settings\([^)]*\b{name}="]
        patterns += [rf"\b{section}:\\n  {name}:"]
    if name not in COMMON:
        patterns += [rf"\b{name}\b"]
    return patterns


@cache
def source_of(file: str, name: str) -> str:
    """A test's source, with what stands at the top of its module under the names that it uses; empty without it."""
    path = ROOT / file
    if not path.is_file():
        return ""
    text = path.read_text()
    lines = text.splitlines()
    pieces = {}
    for node in ast.parse(text).body:
        names = [node.name] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else []
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        first = min([node.lineno, *[one.lineno for one in getattr(node, "decorator_list", [])]])
        pieces |= {one: "\n".join(lines[first - 1 : node.end_lineno]) for one in names}
    test = pieces.get(name, "")
    used = set(re.findall(r"\w+", test)) - {name}
    return "\n".join([test, *(piece for one, piece in pieces.items() if one in used)]) if test else ""
