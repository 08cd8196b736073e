"""File descriptors: what each role needs, and what the system gives it.

A role that runs out of them fails in strange places. So when a role starts, the soft limit is raised where the hard one
allows it, and a role that would not work is refused.
"""

import logging
import resource
from typing import Final

from config.errors import ConfigError
from config.settings import Settings

log = logging.getLogger("themes.limits")

#: File descriptors that a process needs beside its connections: modules, logs, Celery, Redis.
SPARE: Final = 100
#: Files that SQLite has open for a connection: the database, its log, the log's index.
FILES_A_CONNECTION: Final = 3


def worker_descriptors(settings: Settings) -> int:
    limits = settings.performance_optimization
    endpoints = max(1, len(settings.llm.endpoints))
    return SPARE + limits.llm_connection_pool_size * endpoints + limits.worker_pool_size * 2


def consumer_descriptors(settings: Settings) -> int:
    return SPARE + settings.performance_optimization.database_connection_pool_size * FILES_A_CONNECTION


def dashboard_descriptors(settings: Settings) -> int:
    return consumer_descriptors(settings) + settings.dashboard.max_watchers


def allowed_descriptors() -> tuple[int, int]:
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_descriptors(needed: int) -> int:
    """Raise the soft limit to what is needed, where that is allowed; returns what is allowed now."""
    soft, hard = allowed_descriptors()
    if soft >= needed or soft == resource.RLIM_INFINITY:
        return needed if soft == resource.RLIM_INFINITY else soft
    wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if wanted > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as exc:
            log.debug("action=few_files the limit of %d stays: %s", soft, exc)
            return soft
        log.info("action=files_raised limit=%d before=%d", wanted, soft)
    return max(wanted, soft)


def refuse_too_few_descriptors(role: str, needed: int) -> None:
    """Raise the limit, or raise `ConfigError` where the system allows fewer than `needed`."""
    allowed = raise_descriptors(needed)
    if allowed < needed:
        raise ConfigError(
            f"the {role} needs {needed} file descriptors and may have {allowed}: run `ulimit -n {needed}` before it "
            "starts (LimitNOFILE= in systemd, --ulimit nofile= in docker), or make its pools smaller"
        )


def ensure_descriptors(role: str, needed: int, *, must: bool = True) -> None:
    """As `refuse_too_few_descriptors` for a role that starts; not `must`: too few are only logged."""
    try:
        refuse_too_few_descriptors(role, needed)
    except ConfigError as exc:
        if must:
            raise
        log.warning("action=few_files %s", exc)
