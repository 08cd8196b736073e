"""One check, and all of them at once: none hides another, however it fails or hangs."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Final

from redis import Redis

from config.errors import ThemesError
from config.settings import Settings
from tasks.connection import check_server, connect, locate
from tasks.redis_url import masked

CHECK_SECONDS: Final = 20.0
#: Characters of an unforeseen error that are shown.
SHOWN_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. A `fix` where it is `ok` is advice."""

    name: str
    ok: bool
    found: str
    fix: str | None = None


#: Checks one subject; what it yields before it fails counts.
Checks = Callable[[Settings], Iterator[Check]]


def examine(subjects: Mapping[str, Checks], settings: Settings, *, seconds: float = CHECK_SECONDS) -> list[Check]:
    """Every check of every subject, in their order; all subjects at once."""
    found: list[tuple[threading.Thread, list[Check]]] = []
    for name, checks_of in subjects.items():
        checks: list[Check] = []
        # A check that hangs must not keep the process.
        thread = threading.Thread(target=_check, args=(name, checks_of, settings, checks), name=name, daemon=True)
        thread.start()
        found.append((thread, checks))
    deadline = monotonic() + seconds
    for thread, checks in found:
        thread.join(max(0.0, deadline - monotonic()))
        if thread.is_alive():
            checks.append(Check(thread.name, ok=False, found=f"no answer within {seconds:g} s", fix=_HANGS))
    return [check for _, checks in found for check in list(checks)]


_HANGS: Final = "what it asks hangs: look at that server's own log, then run `themes doctor` again"


def _check(name: str, checks_of: Checks, settings: Settings, checks: list[Check]) -> None:
    """One subject; an error of ours is its finding, its last part the fix."""
    try:
        for check in checks_of(settings):
            checks.append(check)  # noqa: PERF402  # what came before an error counts
    except ThemesError as exc:
        said = str(exc)
        found, _, fix = said.rpartition(": ")
        checks.append(Check(name, ok=False, found=found or said, fix=fix if found else "mend that"))
    except Exception as exc:  # noqa: BLE001  # the other checks go on, and this one says what it met
        said = masked(" ".join(f"{type(exc).__name__}: {exc}".split()))[:SHOWN_CHARACTERS]
        fix = "mend what the error names; `themes --debug doctor` shows more of it"
        checks.append(Check(name, ok=False, found=said, fix=fix))


@contextmanager
def reached(settings: Settings, *, seconds: float = 5.0) -> Iterator[Redis]:
    """A client of the Redis in use, which answers. Raises RedisUnavailableError."""
    with connect(
        locate(settings), socket_timeout_seconds=min(seconds, settings.redis.socket_timeout_seconds)
    ) as client:
        check_server(client)
        yield client
