"""Connections to the master that Redis Sentinel names when they are opened.

A failover breaks the connections to the old master, or Sentinel closes them; the new ones lead to the new master. A
server that calls itself a replica is refused: the sentinel that named it has not heard of the failover yet.
"""

from typing import Any, ClassVar, Final

import redis.asyncio
from redis.connection import Connection, ConnectionPool, SSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError

from tasks.quick_redis import QuickConnection, QuickSslConnection
from tasks.redis_url import RedisUrl

_QUESTION: Final = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME")


class _Following:
    """What connections of both kinds share. `sentinels` belongs to all connections of a pool: who answered is first."""

    _kind: ClassVar[type]

    def __init__(
        self,
        *,
        sentinels: list[tuple[str, int]],
        master: str,
        sentinel_login: tuple[str | None, str | None],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._sentinels, self._master = sentinels, master
        user, password = sentinel_login
        seconds = options.get("socket_connect_timeout")
        tls = {name: value for name, value in options.items() if name.startswith("ssl_")}
        waits = {"socket_connect_timeout": seconds, "socket_timeout": seconds}
        self._asking = {"username": user, "password": password, **waits, **tls}
        self._asked: tuple[str, int] | None = None

    def _to_sentinel(self, sentinel: tuple[str, int]) -> Any:
        host, port = sentinel
        return self._kind(host=host, port=port, **self._asking)

    def _is_named(self, sentinel: tuple[str, int], reply: Any, reasons: list[str]) -> bool:
        """Take the address in a sentinel's reply, where it has one."""
        if not reply:
            reasons.append(f"{_shown(sentinel)} knows no master {self._master}")
            return False
        host, port = reply
        self.host, self.port = host.decode() if isinstance(host, bytes) else host, int(port)
        self._asked = sentinel
        self._sentinels[:] = [sentinel, *(one for one in self._sentinels if one != sentinel)]
        return True

    def _check_role(self, hello: Any) -> None:
        facts = hello if isinstance(hello, dict) else dict(zip(hello[::2], hello[1::2], strict=True))
        if facts.get(b"role", facts.get("role")) in {b"master", "master"}:
            return
        # The others are asked first next time.
        self._sentinels[:] = [*(one for one in self._sentinels if one != self._asked), *filter(None, [self._asked])]
        raise RedisConnectionError(f"{self.host}:{self.port} is no master: a failover is under way")

    def _demoted(self) -> RedisConnectionError:
        return RedisConnectionError(f"{self.host}:{self.port} is no master any more")


def _shown(sentinel: tuple[str, int]) -> str:
    return f"sentinel {sentinel[0]}:{sentinel[1]}"


class MasterConnection(_Following, Connection):
    _kind: ClassVar[type] = Connection

    def _connect(self) -> Any:
        reasons: list[str] = []
        for sentinel in tuple(self._sentinels):
            asking = self._to_sentinel(sentinel)
            try:
                asking.connect()
                asking.send_command(*_QUESTION, self._master)
                reply = asking.read_response()
            except RedisError as exc:
                reasons.append(f"{_shown(sentinel)}: {exc}")
                continue
            finally:
                asking.disconnect()
            if self._is_named(sentinel, reply, reasons):
                return super()._connect()  # type: ignore[no-untyped-call]
        raise RedisConnectionError("; ".join(reasons))

    def on_connect_check_health(self, check_health: bool = True) -> None:  # noqa: FBT001, FBT002  # theirs
        super().on_connect_check_health(check_health)
        self.send_command("HELLO", check_health=False)  # type: ignore[no-untyped-call]
        self._check_role(self.read_response())

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except ReadOnlyError as exc:
            self.disconnect()  # type: ignore[no-untyped-call]
            raise self._demoted() from exc


class SslMasterConnection(MasterConnection, SSLConnection):
    _kind: ClassVar[type] = SSLConnection


class AsyncMasterConnection(_Following, QuickConnection):
    _kind = redis.asyncio.Connection

    async def _connect(self) -> None:
        reasons: list[str] = []
        for sentinel in tuple(self._sentinels):
            asking = self._to_sentinel(sentinel)
            try:
                await asking.connect()
                await asking.send_command(*_QUESTION, self._master)
                reply = await asking.read_response()
            except RedisError as exc:
                reasons.append(f"{_shown(sentinel)}: {exc}")
                continue
            finally:
                await asking.disconnect(nowait=True)
            if self._is_named(sentinel, reply, reasons):
                await super()._connect()  # type: ignore[no-untyped-call]
                return
        raise RedisConnectionError("; ".join(reasons))

    async def on_connect_check_health(self, check_health: bool = True) -> None:  # noqa: FBT001, FBT002  # theirs
        await super().on_connect_check_health(check_health)
        await self.send_command("HELLO", check_health=False)
        self._check_role(await self.read_response())

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except ReadOnlyError as exc:
            await self.disconnect(nowait=True)
            raise self._demoted() from exc


class AsyncSslMasterConnection(AsyncMasterConnection, QuickSslConnection):
    _kind = redis.asyncio.SSLConnection


_KINDS: Final[dict[type, type]] = {
    Connection: MasterConnection,
    SSLConnection: SslMasterConnection,
    redis.asyncio.Connection: AsyncMasterConnection,
    redis.asyncio.SSLConnection: AsyncSslMasterConnection,
}


def options_of(url: RedisUrl) -> dict[str, Any]:
    """What a connection that follows takes beside what others take."""
    return {"sentinels": list(url.sentinels), "master": url.master, "sentinel_login": url.sentinel_login}


def follow(pool: ConnectionPool | redis.asyncio.ConnectionPool, url: RedisUrl) -> None:
    """Let a pool that has not connected yet follow the master of `url`."""
    pool.connection_class = _KINDS[pool.connection_class]
    pool.connection_kwargs.update(options_of(url))
