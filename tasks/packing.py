"""Packs commands to Redis in C, as redis-py does in its other client; its asyncio client packs them in Python."""

from typing import Any, Final

import hiredis
import redis.asyncio


class _Packing:
    def pack_command(self, *args: Any) -> list[bytes]:
        """The bytes of a command. What hiredis does not take is left to redis-py: a name of two words, bool, enums."""
        if type(args[0]) is str and " " not in args[0]:
            try:
                return [hiredis.pack_command(args)]
            except TypeError:
                pass  # redis-py says what is wrong with it, or converts it
        made: list[bytes] = super().pack_command(*args)  # type: ignore[misc]
        return made


class _Connection(_Packing, redis.asyncio.Connection):
    """Over TCP."""


class _SslConnection(_Packing, redis.asyncio.SSLConnection):
    """Over TLS."""


_KINDS: Final[dict[type, type[redis.asyncio.Connection]]] = {
    redis.asyncio.Connection: _Connection,
    redis.asyncio.SSLConnection: _SslConnection,
}


def packing_in_c(client: redis.asyncio.Redis) -> redis.asyncio.Redis:
    """The same client, before it has connected."""
    pool = client.connection_pool
    pool.connection_class = _KINDS.get(pool.connection_class, pool.connection_class)
    return client
