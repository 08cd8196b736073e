"""The sockets to one server: counted, bounded, and closed when they are old, idle or broken.

aiohttp keeps a connection for as long as it is used, which behind a load balancer pins a worker to one machine. So each
connection is closed after an age, which differs a little between connections.
"""

import asyncio
import contextlib
import random
import ssl
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import aiohttp
import msgspec
from aiohttp.helpers import basicauth_from_netrc, get_env_proxy_for_url, netrc_from_env
from yarl import URL

from config.sections import LlmSettings, PerformanceSettings
from tasks.errors import ConfigError
from tasks.redis_url import secret_values
from workers.observe.profiler import SILENT, PerformanceProfiler

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler

#: Names of this machine: its servers are reached without a proxy.
THIS_MACHINE: Final = frozenset({"localhost", "127.0.0.1", "::1"})
#: Part of the age by which connections differ.
SPREAD: Final = 0.1


class _Use(msgspec.Struct):
    """Of one connection: when it has reached its age (monotonic seconds), and the requests that it has served."""

    ends_at: float
    served: int = 0


#: Of a connection that was not opened here: it is not lent again.
_UNKNOWN: Final = _Use(0.0)


class RecyclingConnector(aiohttp.TCPConnector):
    """Opens connections, lends idle ones again, and closes those that have reached their age or served enough.

    It relies on methods and the limit of aiohttp's connector that are not public; tests/integration/test_endpoints.py
    and tests/e2e/test_tune.py hold them against a real server.
    """

    def __init__(
        self, *, max_age_seconds: float, max_requests: int, profiler: PerformanceProfiler, **options: Any
    ) -> None:
        super().__init__(**options)
        self._profiler = profiler
        #: Seconds that the requests of these tasks have spent in connecting, until they ask.
        self._connecting: WeakKeyDictionary[asyncio.Task[Any], float] = WeakKeyDictionary()
        self._max_requests = max_requests
        self._max_age_seconds = max_age_seconds
        self._uses: WeakKeyDictionary[ResponseHandler, _Use] = WeakKeyDictionary()
        self.opened = 0

    @property
    def open(self) -> int:
        return self.idle + sum(1 for one in self._acquired if one in self._uses)

    @property
    def idle(self) -> int:
        return sum(len(idle) for idle in self._conns.values())

    @property
    def recycled(self) -> int:
        """Connections that were open once and no longer are: old, idle for too long, or broken."""
        return self.opened - self.open

    def resize(self, limit: int) -> None:
        """Allow `limit` connections; those above it close after their current request."""
        self._limit = limit
        self._release_waiter()

    async def _create_connection(self, *args: Any, **options: Any) -> "ResponseHandler":
        began = time.perf_counter()
        try:
            protocol = await super()._create_connection(*args, **options)
        finally:
            self._connected(time.perf_counter() - began)
        self.opened += 1
        age = self._max_age_seconds * (1 - SPREAD * random.random())  # noqa: S311  # spread, no secret
        self._uses[protocol] = _Use(time.monotonic() + age)
        return protocol

    def _connected(self, seconds: float) -> None:
        self._profiler.record("llm.connect", seconds)
        if task := asyncio.current_task():
            self._connecting[task] = self._connecting.get(task, 0.0) + seconds

    def connecting_seconds(self) -> float:
        """Seconds that the request of this task has spent in connecting; 0 when it found an open connection."""
        task = asyncio.current_task() if self._connecting else None
        return self._connecting.pop(task, 0.0) if task else 0.0

    def _release(self, key: Any, protocol: "ResponseHandler", *, should_close: bool = False) -> None:
        use = self._uses.get(protocol, _UNKNOWN)
        use.served += 1
        is_over = use.served >= self._max_requests or time.monotonic() >= use.ends_at
        super()._release(key, protocol, should_close=should_close or is_over)


def _trusting(ca_file: Path | None) -> ssl.SSLContext | bool:
    """The authorities that check servers' certificates: the system's, and those of a file."""
    if ca_file is None:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=ca_file)
    except OSError as exc:
        raise ConfigError(f"llm.ca_file: {ca_file} holds no certificates that can be read ({exc})") from exc
    return context


def _proxy(url: URL) -> dict[str, Any]:
    """What a session needs for the proxy of the environment, if there is one for this server.

    aiohttp's `trust_env` would look for it, and for a log-in, with each request, in two threads: more CPU than the rest
    of the request.
    """
    # Proxies of the environment are for the outside.
    if url.host not in THIS_MACHINE:
        with contextlib.suppress(LookupError):
            proxy, log_in = get_env_proxy_for_url(url)
            return {"proxy": proxy, "proxy_auth": log_in}
    return {}


def _log_in(url: URL) -> dict[str, str]:
    """The header with the user's log-in for this server out of `~/.netrc`, if there is one."""
    if url.host and url.host not in THIS_MACHINE and url.user is None:
        with contextlib.suppress(LookupError):
            return {"Authorization": basicauth_from_netrc(netrc_from_env(), url.host).encode()}
    return {}


class Connections:
    """One server's session. Create and close it on the loop that uses it."""

    def __init__(
        self,
        settings: LlmSettings,
        *,
        base_url: str,
        api_key: str | None,
        max_connections: int,
        profiler: PerformanceProfiler = SILENT,
        max_requests: int = PerformanceSettings().max_requests_per_connection,
        query: str = "",
        more_headers: Mapping[str, str] | None = None,
    ) -> None:
        #: What is asked behind each path.
        self.query = query
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if api_key:
            headers["Authorization"] = f"Bearer {str.__str__(api_key)}"
        headers |= {name: str.__str__(text) for name, text in (more_headers or {}).items()}
        if "authorization" not in map(str.lower, headers):
            headers |= _log_in(URL(base_url))
        #: The server's keys, to be kept out of what is said.
        password = urlsplit(base_url).password
        secrets = (api_key, password, *(more_headers or {}).values(), *secret_values(query))
        self.secrets = [str.__str__(one) for one in secrets if one]
        self.connector = RecyclingConnector(
            limit=max_connections,
            keepalive_timeout=settings.idle_connection_seconds,
            max_age_seconds=settings.max_connection_age_seconds,
            profiler=profiler,
            max_requests=max_requests,
            ssl=_trusting(settings.ca_file),
        )
        with warnings.catch_warnings():
            # aiohttp 4 shall take a proxy's log-in in a header alone, as aiohttp 3 does for https only.
            warnings.filterwarnings("ignore", "The 'proxy_auth' parameter", DeprecationWarning)
            self.session = aiohttp.ClientSession(
                headers=headers,
                connector=self.connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                **_proxy(URL(base_url)),
            )

    def __repr__(self) -> str:
        one = self.connector
        return f"<Connections idle={one.idle} opened={one.opened} recycled={one.recycled}>"

    async def close(self) -> None:
        await self.session.close()
