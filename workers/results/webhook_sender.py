"""Posts notices of jobs to a user's server: signed, at least once, again until it says 2xx.

    queued in Redis with what it tells of -> claimed by one consumer -> posted -> forgotten, or due again later

The form is that of https://www.standardwebhooks.com: `webhook-id` is equal for each try, `webhook-timestamp` is when a
try was sent, and `webhook-signature` is `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import random
import time
from typing import Final, Self

import aiohttp
import msgspec
from redis import RedisError
from redis.asyncio import Redis
from yarl import URL

from config.sections import WebhookSettings
from config.values import signing_key
from tasks import keys
from tasks.connection import text_of
from tasks.lua import lua
from workers.process.addresses import GuardedResolver, PrivateAddressError, check_literal, hosts_of
from workers.process.outage import Outage
from workers.results.webhook import Notice

log = logging.getLogger("themes.webhook")

#: Seconds between two looks for what is due, and for which a consumer has what it has claimed beyond one request.
LOOK_SECONDS: Final = 1.0
CLAIM_SECONDS: Final = 30.0
#: Seconds after the first try that failed, by what each further pause is longer, and how long one is at most.
FIRST_PAUSE_SECONDS, PAUSE_FACTOR, MAX_PAUSE_SECONDS = 5.0, 3.0, 3600.0
#: Tries after which no pause gets longer: a month has more tries than a float can hold the factor to the power of.
MOST_FACTORS: Final = 10
#: Bytes of an answer that are read: what a server says is only logged.
ANSWER_BYTES: Final = 2_000


def signature(secret: str, id_: str, timestamp: int, body: str) -> str:
    """What `webhook-signature` is."""
    digest = hmac.digest(signing_key(secret), f"{id_}.{timestamp}.{body}".encode(), hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


class WebhookSender:
    """Posts what is due while it is open."""

    def __init__(self, redis: Redis, settings: WebhookSettings) -> None:
        self._redis = redis
        self._settings = settings
        self._private_hosts = hosts_of(settings.private_hosts)
        self._claim = redis.register_script(lua(__file__, "claim_webhook"))
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<WebhookSender private_hosts={sorted(self._private_hosts)}>"

    async def __aenter__(self) -> Self:
        resolver = GuardedResolver(self._private_hosts)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=resolver, socket_factory=resolver.socket, limit=1),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout_seconds),
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def run(self) -> None:
        """Send what is due until cancelled; Redis away is waited for."""
        outage = Outage(
            log,
            lost="action=webhook_missed Redis does not answer: %s",
            back="action=webhook_back Redis answers, notices are posted again",
        )
        while True:
            try:
                is_sent = await self.send_one()
            except (RedisError, OSError) as exc:
                outage.begin(exc)
                is_sent = False
            else:
                outage.end()
            if not is_sent:
                await asyncio.sleep(LOOK_SECONDS)

    async def send_one(self) -> bool:
        """Send the notice that is due first; False where none is."""
        has_ms = int((self._settings.timeout_seconds + CLAIM_SECONDS) * 1000)
        claimed = await self._claim(keys=[keys.WEBHOOKS_DUE, keys.WEBHOOKS], args=[has_ms])
        if not claimed:
            return False
        id_ = text_of(claimed[0])
        try:
            notice = Notice.of(id_, claimed[1])
        except (msgspec.MsgspecError, UnicodeError) as exc:
            log.error("action=webhook_lost notice=%s cannot be read: %s", id_, exc)  # noqa: TRY400  # its place says it
            await self._forget(id_)
            return True
        error = await self._post(notice)
        if error is None:
            log.info("action=webhook_sent notice=%s tries=%d", notice.id, notice.tries + 1)
            await self._forget(id_)
        elif time.time() - notice.created_at > self._settings.retry_hours * 3600:
            log.error("action=webhook_lost notice=%s tries=%d it is given up: %s", notice.id, notice.tries + 1, error)
            await self._forget(id_)
        else:
            await self._again(notice, error)
        return True

    async def _post(self, notice: Notice) -> str | None:
        """Why a try has failed; None where the server said 2xx."""
        url, now = str(self._settings.url), int(time.time())
        assert self._session  # noqa: S101  # opened by `async with`
        headers = {
            "Content-Type": "application/json",
            "webhook-id": notice.id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(str(self._settings.secret), notice.id, now, notice.body),
        }
        try:
            host = (URL(url).host or "").lower()
            if host not in self._private_hosts:
                check_literal(host)
            # A redirect is an error: it would send what is signed to somebody else.
            async with self._session.post(url, data=notice.body.encode(), headers=headers, allow_redirects=False) as it:
                if 200 <= it.status < 300:  # noqa: PLR2004  # HTTP
                    # Taken, whatever becomes of the body.
                    return None
                return f"HTTP {it.status}: {(await it.content.read(ANSWER_BYTES))[:200]!r}"
        except PrivateAddressError as exc:
            return f"{exc}: name the host in webhook.private_hosts if it is yours"
        except aiohttp.ClientResponseError as exc:
            # Its own text has the URL, which is a secret.
            return f"what came cannot be read as HTTP: {exc.message[:200]!r}"
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as exc:
            inner = getattr(exc, "os_error", None)
            if isinstance(inner, PrivateAddressError):
                return f"{inner}: name the host in webhook.private_hosts if it is yours"
            return str(exc) or type(exc).__name__

    async def _again(self, notice: Notice, error: str) -> None:
        longest = min(notice.tries, MOST_FACTORS)
        pause = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * PAUSE_FACTOR**longest) * random.uniform(0.8, 1.2)  # noqa: S311  # no secret
        notice.tries += 1
        log.warning(
            "action=webhook_failed notice=%s tries=%d again in %.0f s: %s", notice.id, notice.tries, pause, error
        )
        seconds, micros = await self._redis.time()
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(keys.WEBHOOKS, notice.id, notice.encoded())
            pipeline.zadd(keys.WEBHOOKS_DUE, {notice.id: int((seconds + pause) * 1000 + micros / 1000)})
            await pipeline.execute()

    async def _forget(self, id_: str) -> None:
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.zrem(keys.WEBHOOKS_DUE, id_)
            pipeline.hdel(keys.WEBHOOKS, id_)
            await pipeline.execute()
