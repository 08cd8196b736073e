"""Which Redis, how to reach it, and whether it will do.

Every refusal is one clear line that names the place, with the password masked, and the mend.
"""

import contextlib
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import redis.asyncio
from redis import Redis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.connection import ConnectionPool, SSLConnection
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    InvalidResponse,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from config.sections import PerformanceSettings
from config.settings import Settings
from tasks import tls
from tasks.errors import ConfigError, RedisUnavailableError
from tasks.quick_redis import quick
from tasks.redis_url import RedisUrl, masked, parsed
from tasks.state_dir import check_private, elsewhere

#: Where a private Redis leaves its address, in the state directory.
ADDRESS_FILE: Final = "redis.url"
#: The oldest server that has what we use (streams with XAUTOCLAIM).
OLDEST: Final = (6, 2)
CONNECT_SECONDS: Final = 5.0
#: Times that a command is tried again when its connection turns out to be gone.
RETRIES: Final = 1
#: Seconds of silence after which a connection is checked before use.
HEALTH_SECONDS: Final = 30
#: Seconds that a server which is loading its data is waited for.
LOADING_SECONDS: Final = 60.0
_MORE_CLIENTS: Final = (
    "raise its maxclients (`redis-cli CONFIG SET maxclients 1000`): docs/explanation/reliability.md has what each role "
    "needs"
)
_CLUSTER: Final = (
    "is a cluster, whose nodes would each have some of the keys that a job's scripts change together: set REDIS_URL to "
    'a Redis without cluster mode ("cluster mode disabled" where you rent it)'
)
_START: Final = "start one with `themes up`, or set REDIS_URL; `themes run FILE` does a job without Redis"


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a Redis says of itself. Where it may not be asked with INFO, the policy is unknown and amounts are 0."""

    version: str
    policy: str
    used_memory_bytes: int
    max_memory_bytes: int
    is_persistent: bool


def locate(settings: Settings) -> str:
    """The Redis to use: the one that the user set, else the private one of this state directory, else the default.

    What the user set is never replaced, reachable or not.

    Raises:
        RedisUnavailableError: there is to be none, says `redis.enabled`.
        ConfigError: the state directory is not this user's alone.
    """
    check_enabled(settings)
    if settings.is_set("performance_optimization.redis_url"):
        return settings.redis_url
    for path in (settings.state_dir, settings.state_dir / ADDRESS_FILE):
        check_private(path)
    return private_url(settings.state_dir) or settings.redis_url


def check_enabled(settings: Settings) -> None:
    """Refuse to look for a Redis where there is to be none. Raises RedisUnavailableError: `redis.enabled` is false."""
    if not settings.redis.enabled:
        raise RedisUnavailableError(
            f"this needs Redis, and redis.enabled is false ({settings.origin('redis.enabled')}): "
            "`themes run FILE` does a job without, or set THEMES_REDIS__ENABLED=true"
        )


def private_url(state_dir: Path) -> str | None:
    """The address of the private Redis that runs for this state directory; None when there is none, or it is dead."""
    try:
        url = (state_dir / ADDRESS_FILE).read_text("utf-8").strip()
    except (OSError, UnicodeError):
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
    target = parsed(url)
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES)
    try:
        client = Redis.from_url(target.text, retry=retry, **_options(socket_timeout_seconds))
        _follow(client, target)
        # An option that no connection knows comes to light when one is made, which redis-py does at the first command.
        client.connection_pool.connection_class(**client.connection_pool.connection_kwargs)
    except (TypeError, ValueError) as exc:
        said = _said(exc).rpartition("__init__() ")[2]
        raise ConfigError(f"redis_url: {masked(url)!r} has an option that cannot be used: {said}") from exc
    return client


def connected(settings: Settings) -> Redis:
    """A client of the Redis to use; see `locate` and `connect`."""
    return connect(locate(settings), socket_timeout_seconds=settings.redis.socket_timeout_seconds)


class CountedRetry(AsyncRetry):
    """Counts the commands of this process that met a Redis which was away or too slow, each try."""

    #: For all clients of the process: redis-py copies the object for each connection.
    failures: ClassVar[int] = 0

    def call_with_retry(self, do: Any, fail: Any, *args: Any, **options: Any) -> Any:
        def counted(*failure: Any) -> Any:
            CountedRetry.failures += 1
            return fail(*failure)

        return super().call_with_retry(do, counted, *args, **options)


def connect_async(url: str, *, socket_timeout_seconds: float) -> redis.asyncio.Redis:
    """The same as `connect`, for the loop that it is called on."""
    connect(url, socket_timeout_seconds=socket_timeout_seconds).close()
    retry = CountedRetry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES)
    options = _options(socket_timeout_seconds)
    target = parsed(url)
    client = redis.asyncio.Redis.from_url(target.text, retry=retry, **options)
    _follow(client, target)
    return quick(client)


def _follow(client: Redis | redis.asyncio.Redis, target: RedisUrl) -> None:
    if target.sentinels:
        # Late: most have no Sentinel.
        from tasks.sentinel import follow

        follow(client.connection_pool, target)


def _options(socket_timeout_seconds: float) -> dict[str, Any]:
    return {
        "socket_timeout": socket_timeout_seconds,
        "socket_connect_timeout": min(CONNECT_SECONDS, socket_timeout_seconds),
        "socket_keepalive": True,
        "health_check_interval": HEALTH_SECONDS,
        "client_name": "themes",
        "decode_responses": False,
    }


def text_of(value: object) -> str:
    """A key or member that redis-py's types call bytes or str: ours come as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def place_of(client: Redis) -> str:
    """Where a client connects to, for people: redis://host:port/db."""
    options = client.connection_pool.connection_kwargs
    is_tls, database = issubclass(client.connection_pool.connection_class, SSLConnection), options.get("db", 0)
    if "sentinels" in options:
        hosts = ",".join(f"{host}:{port}" for host, port in options["sentinels"])
        return f"{'rediss-' * is_tls}sentinel://{hosts}/{database}?master={options['master']}"
    return f"redis{'s' * is_tls}://{options.get('host', 'localhost')}:{options.get('port', 6379)}/{database}"


@contextlib.contextmanager
def translated(client: Redis, place: str = "") -> Iterator[None]:
    """Within the body, errors of Redis become `RedisUnavailableError` with the place and the mend."""
    place = place or place_of(client)
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
            f"Redis at {place} does not let this user do what is needed ({_said(exc)}): {_acl_command(client)}"
        ) from exc
    except RedisTimeoutError as exc:
        raise RedisUnavailableError(f"Redis at {place} does not answer in time: {_mend(client, place, exc)}") from exc
    except InvalidResponse as exc:
        raise _no_redis(client, f" ({_said(exc)})") from exc
    except (RedisConnectionError, UnicodeError, socket.gaierror) as exc:
        if "max number of clients" in str(exc):
            raise RedisUnavailableError(f"Redis at {place} has no connection left: {_MORE_CLIENTS}") from exc
        raise RedisUnavailableError(
            f"Redis at {place} cannot be reached ({_said(exc)}): {_mend(client, place, exc)}"
        ) from exc
    except ResponseError as exc:
        raise RedisUnavailableError(f"Redis at {place} {_refused(exc)}") from exc


def _mend(client: Redis, place: str, exc: BaseException) -> str:
    """How to have a Redis that can be used; where the default was asked, stacks that run elsewhere are named."""
    otherwise = elsewhere(_START) if place == PerformanceSettings().redis_url else _START
    return tls.mend(client.connection_pool, exc) or otherwise


def _channels(client: Redis) -> tuple[str, ...]:
    """Channel patterns that are subscribed to. A pattern has to be allowed as it is written here, not by another."""
    database = client.connection_pool.connection_kwargs.get("db", 0)
    return (f"themes:/{database}.celery.pidbox", f"themes:/{database}.celeryev/*")


def _acl_command(client: Redis) -> str:
    user = client.connection_pool.connection_kwargs.get("username") or "default"
    channels = " ".join(f"&{pattern}" for pattern in ("themes:*", *_channels(client)))
    return f"`ACL SETUSER {user} ~themes:* {channels} +@all -@dangerous`"


def check_rights(client: Redis) -> None:
    """Do what work needs of a Redis: write a key of ours, run a script, publish and subscribe.

    Raises:
        RedisUnavailableError: the user may not; the message has the command that lets it.
    """
    with translated(client), client.pipeline(transaction=False) as pipeline, client.pubsub() as channel:  # type: ignore[no-untyped-call]
        key = f"themes:probe:{secrets.token_hex(4)}"
        pipeline.set(key, "1", ex=5)
        # Two keys: ours belong together, and a cluster, which may hide behind one address, has them apart.
        pipeline.eval("return redis.call('DEL', KEYS[1], KEYS[2])", 2, key, f"{key}:2")
        pipeline.publish("themes:probe", "1")
        with contextlib.suppress(OutOfMemoryError):  # full is not forbidden; what fills it may be about to go
            pipeline.execute()
        channel.psubscribe(*_channels(client))
        # The answer to each subscription, or the error that there is instead.
        for _ in _channels(client):
            channel.get_message(timeout=CONNECT_SECONDS)


def _refused(exc: ResponseError) -> str:
    said = _said(exc)
    if "HELLO" in said:
        # The protocol of our client begins with HELLO, which came with Redis 6.
        return "is older than 6, 6.2 or newer is needed: upgrade it, or let `themes up` start one"
    if isinstance(exc, ClusterCrossSlotError | ClusterDownError | MovedError):
        return _CLUSTER
    if "DB index" in said:
        return "has no database of this number: end REDIS_URL in /0 or another that it has"
    return f"refuses: {said}"


def _said(exc: BaseException) -> str:
    """An error's own words on one line, without what it repeats."""
    return " ".join(str(exc).split())[:160].rstrip(".") or type(exc).__name__


def check_server(client: Redis) -> ServerFacts:
    """Ask a Redis what it is, and refuse one that would lose or mix up work.

    One that is loading its data is waited for.

    Raises:
        RedisUnavailableError: it cannot be reached, keeps loading, is too old, is a read-only replica or a cluster, or
            evicts (`allkeys-*` would delete queued work in silence).
    """
    place = place_of(client)
    with _without_retries(client) as asking:
        info = _loaded_info(asking, place)
    version = str(info["redis_version"])
    if _numbers(version) < OLDEST:
        raise RedisUnavailableError(
            f"Redis at {place} is version {version}, 6.2 or newer is needed: upgrade it, or let `themes up` start one"
        )
    policy = str(info.get("maxmemory_policy", "noeviction" if "used_memory" in info else "unknown"))
    if policy.startswith("allkeys"):
        raise RedisUnavailableError(
            f"Redis at {place} has maxmemory-policy {policy}, which deletes queued work in silence: run "
            "`redis-cli CONFIG SET maxmemory-policy volatile-lru` (and set it in redis.conf)"
        )
    if info.get("role") == "slave" and info.get("slave_read_only", 1):
        raise RedisUnavailableError(f"Redis at {place} is a read-only replica: set REDIS_URL to its master")
    if info.get("cluster_enabled"):
        raise RedisUnavailableError(f"Redis at {place} {_CLUSTER}")
    with translated(client):
        # The database has to be there too.
        client.ping()
    return ServerFacts(
        version=version,
        policy=policy,
        used_memory_bytes=int(info.get("used_memory", 0)),
        max_memory_bytes=int(info.get("maxmemory", 0)),
        is_persistent=bool(info.get("aof_enabled")),
    )


def _without_retries(client: Redis) -> Redis:
    """A client for one question: redis-py's retries multiply, so a frozen server would take four timeouts.

    It asks in database 0, because a cluster that has no other one refuses to select it before it says what it is.
    """
    pool = client.connection_pool
    options = pool.connection_kwargs | {"retry": Retry(NoBackoff(), 0), "db": 0}
    return Redis.from_pool(ConnectionPool(connection_class=pool.connection_class, **options))


def _loaded_info(client: Redis, place: str) -> dict[str, Any]:
    deadline = time.monotonic() + LOADING_SECONDS
    while True:
        info = server_info(client, place)
        if not info.get("loading"):
            return info
        if time.monotonic() > deadline:
            raise RedisUnavailableError(f"Redis at {place} is still loading its data: try again in a moment")
        time.sleep(0.2)


def server_info(client: Redis, place: str = "") -> dict[str, Any]:
    """INFO, or of a server that does not let this user ask for it, version, role and mode alone."""
    with translated(client, place):
        try:
            info: dict[str, Any] = client.info()
        except ResponseError:
            # Forbidden, or a command of another name.
            info = _hello(client)
        except (ValueError, AttributeError, TypeError) as exc:
            # redis-py takes what it got for INFO apart, whatever it was.
            raise _no_redis(client) from exc
    if "redis_version" not in info:
        raise _no_redis(client)
    return info


def _no_redis(client: Redis, why: str = "") -> RedisUnavailableError:
    return RedisUnavailableError(f"{place_of(client)} is not a Redis server{why}: set REDIS_URL")


def _hello(client: Redis) -> dict[str, Any]:
    """What a server says of itself to every user, in the words of INFO."""
    said: Any = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    pairs = said.items() if isinstance(said, dict) else zip(said[::2], said[1::2], strict=True)
    facts = {text_of(name): value for name, value in pairs}
    role, mode = text_of(facts.get("role", "master")), text_of(facts.get("mode", "standalone"))
    return {
        "redis_version": text_of(facts.get("version", "0")),
        "role": "slave" if role == "replica" else role,
        "cluster_enabled": mode == "cluster",
    }


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version. Valkey calls itself Redis 7.2 here."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
