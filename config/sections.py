"""The sections of the settings, a class each: every key with its type, default and bounds (inclusive).

`config.yaml` beside this module says what each key means and in which unit; a test holds it against what stands here.
"""

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from config.endpoints import FLEX, PRIORITY, STANDARD, TIERS, Body, Endpoints, Headers, Roles
from config.teams import TeamBudgets
from config.values import Price, Prices, Secret, SecretAddress, setting


def mapping() -> Any:
    return field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class PerformanceSettings:
    """The section `performance_optimization`: names and defaults are the users' contract."""

    llm_connection_pool_size: int = setting(15, low=1, high=10_000)
    llm_connection_pool_min_size: int = setting(5, low=0, high=10_000)
    database_connection_pool_size: int = setting(20, low=1, high=1_000)
    max_concurrent_web_requests: int = setting(25, low=1, high=1_000)
    enable_persistent_cache: bool = setting(default=True)
    redis_url: Secret = setting(Secret("redis://localhost:6379/1"))
    max_memory_cache_mb: int = setting(512, low=0, high=1_048_576)
    cache_ttl_days: float = setting(7.0, low=0.0001, high=3650)
    enable_work_stealing: bool = setting(default=True)
    worker_pool_size: int = setting(12, low=1, high=1_000)
    enable_streaming_results: bool = setting(default=True)
    database_batch_size: int = setting(100, low=1, high=10_000)
    enable_result_compression: bool = setting(default=True)
    enable_performance_profiling: bool = setting(default=True)
    memory_pressure_threshold_mb: int = setting(1024, low=64, high=1_048_576)
    theme_batch_size: int = setting(32, low=1, high=100)
    enable_intelligent_batching: bool = setting(default=True)
    max_llm_retries: int = setting(3, low=0, high=20)
    retry_base_delay: float = setting(1.0, low=0, high=600)
    retry_max_delay: float = setting(30.0, low=0, high=3600)
    database_timeout_seconds: float = setting(30.0, low=0.1, high=3600)
    progressive_feedback_interval: float = setting(2.0, low=0.05, high=3600)
    profile_interval_seconds: float = setting(1.0, low=0.1, high=3600)
    max_requests_per_connection: int = setting(1_000, low=1, high=1_000_000_000)
    health_check_interval_seconds: float = setting(60.0, low=0, high=86_400)
    max_streaming_chunk_size: int = setting(1024 * 1024, low=1024, high=64 * 1024 * 1024)
    work_steal_threshold: int = setting(2, low=1, high=1_000)


@dataclass(frozen=True, slots=True)
class LlmSettings:
    base_url: Secret | None = setting(None)
    api_key: Secret | None = setting(None)
    api_key_file: Path | None = setting(None)
    model: str | None = setting(None)
    roles: Roles = mapping()
    endpoints: Endpoints = mapping()
    headers: Headers = mapping()
    extra_body: Body = mapping()
    temperature: float | None = setting(None, low=0, high=2)
    reasoning_effort: str | None = setting(None)
    max_completion_tokens: int = setting(32_000, low=256, high=1_000_000)
    ca_file: Path | None = setting(None)
    connect_timeout_seconds: float = setting(10.0, low=0.05, high=600)
    request_timeout_seconds: float = setting(120.0, low=0.05, high=3600)
    max_connection_age_seconds: float = setting(300.0, low=0.1, high=86_400)
    idle_connection_seconds: float = setting(60.0, low=0.05, high=3600)
    hedge: bool = setting(default=False)
    flight_lease_seconds: float = setting(10.0, low=0.2, high=600)
    wait_for_endpoint_seconds: float = setting(3600.0, low=0, high=2_592_000)
    max_response_bytes: int = setting(4 * 1024 * 1024, low=1024, high=1024**3)
    requests_per_minute: float | None = setting(None, low=0.1, high=100_000_000)
    request_burst: int | None = setting(None, low=1, high=10_000_000)
    tokens_per_minute: float | None = setting(None, low=1, high=100_000_000_000)
    learn_rate_limit: bool = setting(default=True)
    probe_seconds: float = setting(60.0, low=0.05, high=3600)
    adaptive_concurrency: bool = setting(default=True)
    adaptive_concurrency_min: int = setting(1, low=1, high=10_000)
    prices: Prices = field(default_factory=lambda: MappingProxyType({"sandbox": Price(0.0, 0.0)}))
    prices_file: Path | None = setting(None)
    tier: str = setting(STANDARD, choices=TIERS)
    flex_price_factor: float = setting(0.5, low=0, high=10)
    priority_price_factor: float = setting(2.0, low=0, high=10)
    flex_patience_seconds: float = setting(600.0, low=0, high=86_400)
    batch_price_factor: float = setting(0.5, low=0, high=10)
    batch_max_requests: int = setting(50_000, low=1, high=1_000_000)
    batch_max_mb: float = setting(200.0, low=0.01, high=10_000)
    batch_queue_requests: int = setting(200_000, low=1, high=100_000_000)
    batch_form_seconds: float = setting(5.0, low=0.05, high=3600)
    batch_poll_seconds: float = setting(60.0, low=0.05, high=3600)
    batch_settle_seconds: float = setting(60.0, low=0, high=3600)
    batch_stragglers: str = setting(FLEX, choices=(STANDARD, FLEX, PRIORITY))
    batch_keep_files: bool = setting(default=False)


@dataclass(frozen=True, slots=True)
class CacheSettings:
    codec: str = setting("zstd", choices=("zstd", "gzip"))


@dataclass(frozen=True, slots=True)
class RedisSettings:
    enabled: bool = setting(default=True)
    server: str = setting("auto", choices=("auto", "bundled", "system"))
    socket_timeout_seconds: float = setting(10.0, low=1, high=600)


@dataclass(frozen=True, slots=True)
class CelerySettings:
    broker_url: Secret | None = setting(None)
    visibility_timeout_seconds: int = setting(21_600, low=60, high=2_592_000)


@dataclass(frozen=True, slots=True)
class WorkSettings:
    max_chunk_size: int = setting(50, low=1, high=10_000)
    lease_seconds: float = setting(15.0, low=1, high=3600)
    heartbeat_seconds: float = setting(4.0, low=0.2, high=1200)
    sweep_interval_seconds: float = setting(2.0, low=0.1, high=600)
    max_deliveries: int = setting(3, low=1, high=100)
    destination_attempts: int = setting(2, low=1, high=20)
    shutdown_grace_seconds: float = setting(8.0, low=0, high=3600)
    max_unwritten_results: int = setting(20_000, low=100, high=10_000_000)
    wedged_after_seconds: float = setting(30.0, low=2, high=3600)


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """The section `database`. Without a `url` it is `themes.db` in the state directory."""

    url: Secret | None = setting(None)
    flush_interval_seconds: float = setting(0.05, low=0.001, high=60)


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    prompts_dir: Path | None = setting(None)
    fields: str | None = setting(None)
    lead_prompts: bool = setting(default=True)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names in `fields`; none for all."""
        return tuple(word for part in (self.fields or "").split(",") if (word := part.strip()))


@dataclass(frozen=True, slots=True)
class TeamsSettings:
    budgets: TeamBudgets = mapping()


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    url: SecretAddress | None = setting(None)
    secret: Secret | None = setting(None)
    private_hosts: str | None = setting(None)
    timeout_seconds: float = setting(10.0, low=0.1, high=300)
    retry_hours: float = setting(24.0, low=0, high=720)


@dataclass(frozen=True, slots=True)
class WebDiscoverySettings:
    enabled: bool = setting(default=False)
    wikivoyage_url: str | None = setting("https://en.wikivoyage.org/wiki/")
    wikipedia_url: str | None = setting("https://en.wikipedia.org/wiki/")
    brave_api_key: Secret | None = setting(None)
    brave_url: str = setting("https://api.search.brave.com/res/v1/web/search")
    request_timeout_seconds: float = setting(15.0, low=0.1, high=600)
    max_page_bytes: int = setting(4 * 1024 * 1024, low=1024, high=64 * 1024 * 1024)
    max_evidence_characters: int = setting(6_000, low=200, high=200_000)
    private_hosts: str | None = setting(None)


@dataclass(frozen=True, slots=True)
class StreamingSettings:
    max_events_per_job: int = setting(20_000, low=100, high=10_000_000)
    chunk_size: int = setting(500, low=1, high=10_000)
    flush_interval_seconds: float = setting(0.05, low=0.001, high=10)


@dataclass(frozen=True, slots=True)
class ProfilingSettings:
    slowest_kept: int = setting(10, low=0, high=1_000)
    enable_traces: bool = setting(default=False)


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    level: str = setting("INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    format: str = setting("auto", choices=("auto", "text", "json"))


@dataclass(frozen=True, slots=True)
class DashboardSettings:
    host: str = setting("127.0.0.1")
    port: int = setting(5555, low=0, high=65_535)
    basic_auth: Secret | None = setting(None)
    max_watchers: int = setting(5_000, low=1, high=100_000)
    show_answers: bool = setting(default=False)
