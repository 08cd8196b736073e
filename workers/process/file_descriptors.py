"""File descriptors: what each role needs, and what the system gives it.

A role that runs out of them fails in strange places: connections are refused, files cannot be opened. So it is looked
at when a role starts, the soft limit is raised where the hard one allows it, and a role that would not work is refused.
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
    """What a worker process needs: connections to each LLM endpoint, and Redis's for each lane."""
    limits = settings.performance_optimization
    endpoints = max(1, len(settings.llm.endpoints))
    return SPARE + limits.llm_connection_pool_size * endpoints + limits.worker_pool_size * 2


def consumer_descriptors(settings: Settings) -> int:
    """What the consumer needs: its database connections."""
    return SPARE + settings.performance_optimization.database_connection_pool_size * FILES_A_CONNECTION


def dashboard_descriptors(settings: Settings) -> int:
    """What the dashboard needs when it has as many watchers as it may."""
    return consumer_descriptors(settings) + settings.dashboard.max_watchers


def allowed_descriptors() -> tuple[int, int]:
    """What this process may have open, and what it may raise that to."""
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
    """As `ensure_descriptors`, for a change: what is refused is not made.

    Raises:
        ConfigError: the system does not give so many.
    """
    allowed = raise_descriptors(needed)
    if allowed < needed:
        raise ConfigError(
            f"the {role} needs {needed} file descriptors and may have {allowed}: run `ulimit -n {needed}` before it "
            "starts (LimitNOFILE= in systemd, --ulimit nofile= in docker), or make its pools smaller"
        )


def ensure_descriptors(role: str, needed: int, *, must: bool = True) -> None:
    """See to it that a role that starts has the file descriptors that it may need.

    Args:
        role: its name, for the message.
        needed: how many.
        must: refuse where there are fewer; else say so and go on.

    Raises:
        ConfigError: there are fewer, with the line that mends it.
    """
    try:
        refuse_too_few_descriptors(role, needed)
    except ConfigError as exc:
        if must:
            raise
        log.warning("action=few_files %s", exc)
