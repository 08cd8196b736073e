"""What redis-py's asyncio client does for each command, with less CPU: packing it, and handing it to the socket.

It relies on redis-py's `_writer`, which is not public; tests/integration/test_redis_connection.py holds it.
"""

from collections.abc import Iterable
from typing import Any, Final

import hiredis
import redis.asyncio


class _Quick:
    def pack_command(self, *args: Any) -> list[bytes]:
        """Pack in C, as redis-py's other client does. What hiredis does not take is left to redis-py.

        That is a name of two words, a bool, an enum.
        """
        if type(args[0]) is str and " " not in args[0]:
            try:
                return [hiredis.pack_command(args)]
            except TypeError:
                pass  # redis-py converts it, or says what is wrong with it
        made: list[bytes] = super().pack_command(*args)  # type: ignore[misc]
        return made

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:  # noqa: FBT001, FBT002  # theirs
        """Send without a task and a timer of its own where the operating system takes all of it at once."""
        if self.is_connected and not isinstance(command, bytes | str):  # type: ignore[attr-defined]
            if check_health:
                await self.check_health()  # type: ignore[attr-defined]
            writer = self._writer  # type: ignore[attr-defined]
            if writer is not None and not writer.transport.is_closing():
                writer.writelines(command)
                if not writer.transport.get_write_buffer_size():
                    return
                # What is left is waited for, within the time for a command.
                command = []
            check_health = False
        await super().send_packed_command(command, check_health=check_health)  # type: ignore[misc]


class QuickConnection(_Quick, redis.asyncio.Connection):
    """Over TCP."""


class QuickSslConnection(_Quick, redis.asyncio.SSLConnection):
    """Over TLS."""


_KINDS: Final[dict[type, type[redis.asyncio.Connection]]] = {
    redis.asyncio.Connection: QuickConnection,
    redis.asyncio.SSLConnection: QuickSslConnection,
}


def quick(client: redis.asyncio.Redis) -> redis.asyncio.Redis:
    """The same client, before it has connected."""
    pool = client.connection_pool
    pool.connection_class = _KINDS.get(pool.connection_class, pool.connection_class)
    return client
