"""The one way out to the web: bounded in requests, size and time, robots.txt respected.

Every address is checked when it is connected to, after every redirect too (`workers.process.addresses`). Nothing
is sent but a GET and the program's name: no cookies, no credentials, no referrer.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urljoin, urlsplit
from urllib.robotparser import RobotFileParser

import aiohttp
from yarl import URL

from config.settings import Settings
from tasks.errors import PermanentError, RetryableError
from workers.llm.endpoints.bodies import bounded_body
from workers.process.addresses import GuardedResolver, PrivateAddressError, check_literal, hosts_of

#: How we introduce ourselves; Wikimedia's rules ask for a name and a way to find out more.
USER_AGENT: Final = "themes/0.1 (travel themes for destinations; run by its user)"
#: The name that robots.txt may speak of.
ROBOT: Final = "themes"
#: Redirects that are followed.
REDIRECTS: Final = 5
#: Requests at once to one host, whatever `max_concurrent_web_requests` is: more is not polite.
PER_HOST: Final = 4
#: Seconds for which a site's robots.txt holds; hosts whose rules are remembered; bytes that are read of one.
ROBOTS_SECONDS: Final = 3_600.0
ROBOTS_KEPT: Final = 1_000
ROBOTS_BYTES: Final = 512 * 1024
#: Bytes of a page within which it may name its charset.
NAMED_WITHIN: Final = 1024
_CHARSET: Final = re.compile(rb"""<meta[^>]{0,200}charset=["']?([A-Za-z0-9_-]{2,40})""", re.IGNORECASE)
_MOVED: Final = frozenset({301, 302, 303, 307, 308})
_PORTS: Final = frozenset({80, 443})


class PageError(PermanentError):
    """A page cannot be had: not there, not allowed, not text, too large."""


class SiteAwayError(RetryableError):
    """A site does not answer now."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A page as it came: where it was found in the end, its media type, its text."""

    url: str
    media_type: str
    text: str


class GuardedFetcher:
    """Fetches pages. Open and close it on the loop that uses it."""

    def __init__(self, settings: Settings) -> None:
        web = settings.web_discovery
        self._private_hosts = hosts_of(web.private_hosts)
        self._seconds = web.request_timeout_seconds
        self._max_bytes = web.max_page_bytes
        self._size = settings.performance_optimization.max_concurrent_web_requests
        self._turns = asyncio.Semaphore(self._size)
        self._robots: dict[str, tuple[float, RobotFileParser]] = {}
        self._asking: dict[str, asyncio.Lock] = {}
        self._session: aiohttp.ClientSession | None = None
        #: Requests that were made, robots.txt included, and how many at once at most.
        self.requests = 0
        self.in_flight = self.most_in_flight = 0

    def __repr__(self) -> str:
        return f"<GuardedFetcher in_flight={self.in_flight} max={self._size} requests={self.requests}>"

    async def __aenter__(self) -> Self:
        resolver = GuardedResolver(self._private_hosts)
        connector = aiohttp.TCPConnector(
            resolver=resolver,
            socket_factory=resolver.socket,
            limit=self._size,
            limit_per_host=PER_HOST,
            ttl_dns_cache=60,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=self._seconds),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def fetch(self, url: str, *, headers: Mapping[str, str] | None = None, is_api: bool = False) -> Fetched:
        """A page's text, after at most `REDIRECTS` redirects.

        `headers` are sent to this address only, not to where it redirects. `is_api`: robots.txt has no say.

        Raises:
            PageError: not there, not public, not allowed to robots, not text, too large.
            SiteAwayError: the site does not answer now.
        """
        for _ in range(REDIRECTS + 1):
            self._check(url)
            if not is_api and not await self._is_allowed(url):
                raise PageError(f"{url}: its robots.txt does not allow it")
            answer = await self._get(url, headers or {}, self._max_bytes)
            if isinstance(answer, Fetched):
                return answer
            url, headers = urljoin(url, answer), None
        raise PageError(f"{url}: more than {REDIRECTS} redirects")

    def _check(self, url: str) -> None:
        """Refuse what is not a plain address of the public web, as the client reads it (U+3002 and U+FF0E are dots)."""
        try:
            parts = URL(url)
            host, port = (parts.host or "").lower(), parts.explicit_port
        except (ValueError, TypeError) as exc:
            raise PageError(f"not an address: {exc}") from exc
        if parts.scheme not in {"http", "https"} or not host:
            raise PageError(f"{parts.scheme}: not an address of the web")
        if parts.user is not None or parts.password is not None:
            raise PageError(f"{host}: an address with credentials in it")
        if host in self._private_hosts:
            return
        if port is not None and port not in _PORTS:
            raise PageError(f"{host}: port {port} is no port of web pages")
        try:
            check_literal(host)
        except PrivateAddressError as exc:
            raise PageError(str(exc)) from exc

    async def _get(self, url: str, headers: Mapping[str, str], most: int) -> Fetched | str:
        assert self._session  # noqa: S101  # opened by `async with`
        async with self._turns:
            self.requests += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                async with (
                    asyncio.timeout(self._seconds),
                    self._session.get(url, headers=headers, allow_redirects=False) as answer,
                ):
                    return await self._read(url, answer, most)
            except PrivateAddressError as exc:
                raise PageError(str(exc)) from exc
            except aiohttp.ClientConnectorError as exc:
                if isinstance(exc.os_error, PrivateAddressError):
                    raise PageError(str(exc.os_error)) from exc
                raise SiteAwayError(f"{url}: {exc}") from exc
            except (TimeoutError, aiohttp.ClientError, OSError) as exc:
                raise SiteAwayError(f"{url}: {str(exc) or type(exc).__name__}") from exc
            except (ValueError, UnicodeError) as exc:
                raise PageError(f"{url}: {exc}") from exc
            finally:
                self.in_flight -= 1

    @staticmethod
    async def _read(url: str, answer: aiohttp.ClientResponse, most: int) -> Fetched | str:
        if answer.status in _MOVED and (place := answer.headers.get("Location")):
            return place
        if answer.status == 429 or answer.status >= 500:  # noqa: PLR2004  # HTTP
            raise SiteAwayError(f"{url}: status {answer.status}")
        if answer.status != 200:  # noqa: PLR2004  # HTTP
            raise PageError(f"{url}: status {answer.status}")
        if not (answer.content_type.startswith("text/") or answer.content_type.endswith(("json", "xml"))):
            raise PageError(f"{url}: {answer.content_type} is no text")
        try:
            raw = await bounded_body(answer, most)
        except RetryableError as exc:
            raise PageError(f"{url}: larger than {most} bytes, or not readable") from exc
        return Fetched(url, answer.content_type, _decoded(raw, answer.charset))

    async def _is_allowed(self, url: str) -> bool:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}".lower()
        async with self._asking.setdefault(origin, asyncio.Lock()):
            known = self._robots.get(origin)
            if known is None or time.monotonic() - known[0] > ROBOTS_SECONDS:
                known = self._robots[origin] = (time.monotonic(), await self._rules(origin))
                while len(self._robots) > ROBOTS_KEPT:
                    oldest = next(iter(self._robots))
                    del self._robots[oldest]
                    self._asking.pop(oldest, None)
        return known[1].can_fetch(ROBOT, url)

    async def _rules(self, origin: str) -> RobotFileParser:
        """A site's rules, as RFC 9309 reads them: none where there is no file; all shut where it cannot be read."""
        rules = RobotFileParser()
        url = f"{origin}/robots.txt"
        try:
            for _ in range(REDIRECTS + 1):
                self._check(url)
                answer = await self._get(url, {}, ROBOTS_BYTES)
                if isinstance(answer, Fetched):
                    rules.parse(answer.text.splitlines())
                    return rules
                url = urljoin(url, answer)
        except PageError:
            rules.allow_all = True  # type: ignore[attr-defined]  # what `RobotFileParser.read` sets
            return rules
        rules.disallow_all = True  # type: ignore[attr-defined]
        return rules


def _decoded(raw: bytes, charset: str | None) -> str:
    """The text of a page: in the charset of its header, else the one that its first bytes name, else UTF-8."""
    named = charset or next((found[1].decode() for found in _CHARSET.finditer(raw[:NAMED_WITHIN])), "utf-8")
    try:
        return raw.decode(named, "replace")
    except (LookupError, ValueError):
        return raw.decode("utf-8", "replace")
