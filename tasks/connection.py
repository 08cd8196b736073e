"""Which Redis, how to reach it, and whether it will do.

Every refusal is one clear line that names the place, with the password masked, and the mend.
"""

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import redis.asyncio
from redis import Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from config.settings import Settings
from tasks.errors import ConfigError, RedisUnavailableError

#: Where a private Redis leaves its address, in the state directory.
ADDRESS_FILE: Final = "redis.url"
#: The oldest server that has what we use (streams with XAUTOCLAIM).
OLDEST: Final = (6, 2)
#: Seconds to open a connection.
CONNECT_SECONDS: Final = 5.0
#: Times that a command is tried again when its connection turns out to be gone.
RETRIES: Final = 1
#: Seconds of silence after which a connection is checked before use.
HEALTH_SECONDS: Final = 30
_START: Final = "start one with `themes up`, or set REDIS_URL"


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a Redis says of itself."""

    version: str
    policy: str
    used_memory_bytes: int
    max_memory_bytes: int
    is_persistent: bool


def masked(url: str) -> str:
    """A URL without its password."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))


def locate(settings: Settings) -> str:
    """The Redis to use: the one that the user set, else the private one of this state directory, else the default.

    What the user set is never replaced, reachable or not.
    """
    if settings.is_set("performance_optimization.redis_url"):
        return settings.redis_url
    return private_url(settings.state_dir) or settings.redis_url


def private_url(state_dir: Path) -> str | None:
    """The address of the private Redis that runs for this state directory; None when there is none, or it is dead."""
    try:
        url = (state_dir / ADDRESS_FILE).read_text("utf-8").strip()
    except OSError:
        return None
    with contextlib.suppress(RedisError, ValueError), Redis.from_url(url, socket_timeout=2.0) as client:
        client.ping()
        return url
    return None


def connect(url: str, *, socket_timeout_seconds: float) -> Redis:
    """A client that answers bytes. Nothing is sent yet; see `check_server`.

    redis-py 8 waits 5 s for an answer by default, which a blocking read may exceed: the timeout is set on purpose.

    Raises:
        ConfigError: the URL is malformed.
    """
    with _readable(url):
        return Redis.from_url(
            url,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES),
            **_options(socket_timeout_seconds),
        )


def connect_async(url: str, *, socket_timeout_seconds: float) -> redis.asyncio.Redis:
    """The same as `connect`, for the loop that it is called on."""
    with _readable(url):
        return redis.asyncio.Redis.from_url(
            url,
            retry=AsyncRetry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES),
            **_options(socket_timeout_seconds),
        )


def _options(socket_timeout_seconds: float) -> dict[str, Any]:
    return {
        "socket_timeout": socket_timeout_seconds,
        "socket_connect_timeout": min(CONNECT_SECONDS, socket_timeout_seconds),
        "socket_keepalive": True,
        "health_check_interval": HEALTH_SECONDS,
        "client_name": "themes",
        "decode_responses": False,
    }


@contextlib.contextmanager
def _readable(url: str) -> Iterator[None]:
    scheme = urlsplit(url).scheme
    if scheme not in {"redis", "rediss", "unix"}:
        raise ConfigError(
            f"redis_url: expected redis://[:password@]host:port/db, rediss:// or unix://, got {masked(url)!r}"
        )
    try:
        yield
    except ValueError as exc:
        raise ConfigError(f"redis_url: {masked(url)!r} is not valid: {exc}") from exc


def text_of(value: object) -> str:
    """A key or member that redis-py's types call bytes or str: ours come as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def place_of(client: Redis) -> str:
    """Where a client connects to, for people: redis://host:port/db."""
    options = client.connection_pool.connection_kwargs
    if "path" in options:
        return f"unix://{options['path']}"
    return f"redis://{options.get('host', 'localhost')}:{options.get('port', 6379)}/{options.get('db', 0)}"


@contextlib.contextmanager
def translated(client: Redis) -> Iterator[None]:
    """Within the body, errors of Redis become `RedisUnavailableError` with the place and the mend."""
    place = place_of(client)
    try:
        yield
    except AuthenticationError as exc:
        raise RedisUnavailableError(
            f"Redis at {place} refuses the password ({_said(exc)}): put the right one into REDIS_URL, "
            "redis://:PASSWORD@host:port/db"
        ) from exc
    except BusyLoadingError as exc:
        raise RedisUnavailableError(f"Redis at {place} is still loading its data: try again in a moment") from exc
    except NoPermissionError as exc:
        raise RedisUnavailableError(
            f"Redis at {place} does not let this user in ({_said(exc)}): give it the keys themes:* and all commands"
        ) from exc
    except RedisTimeoutError as exc:
        raise RedisUnavailableError(f"Redis at {place} does not answer in time: {_START}") from exc
    except InvalidResponse as exc:
        raise RedisUnavailableError(f"what listens at {place} is no Redis ({_said(exc)}): set REDIS_URL") from exc
    except RedisConnectionError as exc:
        raise RedisUnavailableError(f"Redis at {place} cannot be reached ({_said(exc)}): {_START}") from exc
    except ResponseError as exc:
        # The protocol of our client begins with HELLO, which came with Redis 6.
        what = "is older than 6; 6.2 or newer is needed" if "HELLO" in str(exc) else f"refuses: {_said(exc)}"
        raise RedisUnavailableError(f"Redis at {place} {what}") from exc
    except (UnicodeError, socket.gaierror) as exc:
        raise RedisUnavailableError(f"Redis at {place} cannot be reached ({_said(exc)}): {_START}") from exc


def _said(exc: BaseException) -> str:
    """An error's own words on one line, without what it repeats."""
    text = " ".join(str(exc).split())
    return text[:160].rstrip(".") or type(exc).__name__


def check_server(client: Redis) -> ServerFacts:
    """Ask a Redis what it is, and refuse one that would lose or mix up work.

    Raises:
        RedisUnavailableError: it cannot be reached, is too old, is a read-only replica or a cluster, or evicts
            (`allkeys-*` would delete queued work in silence).
    """
    place = place_of(client)
    with translated(client):
        try:
            info: dict[str, Any] = client.info()
        except ValueError as exc:
            raise RedisUnavailableError(f"what listens at {place} is no Redis: set REDIS_URL") from exc
    version = str(info.get("redis_version", "0"))
    if _numbers(version) < OLDEST:
        raise RedisUnavailableError(
            f"Redis at {place} is version {version}, 6.2 or newer is needed: upgrade it, or let `themes up` start one"
        )
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy.startswith("allkeys"):
        raise RedisUnavailableError(
            f"Redis at {place} has maxmemory-policy {policy}, which deletes queued work in silence: run "
            "`redis-cli CONFIG SET maxmemory-policy volatile-lru` (and set it in redis.conf)"
        )
    if info.get("role") == "slave" and info.get("slave_read_only", 1):
        raise RedisUnavailableError(f"Redis at {place} is a read-only replica: set REDIS_URL to its master")
    if info.get("cluster_enabled"):
        raise RedisUnavailableError(f"Redis at {place} is a cluster, which Celery's queues cannot use: set REDIS_URL")
    return ServerFacts(
        version=version,
        policy=policy,
        used_memory_bytes=int(info.get("used_memory", 0)),
        max_memory_bytes=int(info.get("maxmemory", 0)),
        is_persistent=bool(info.get("aof_enabled")),
    )


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version. Valkey calls itself Redis 7.2 here."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
