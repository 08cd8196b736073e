"""Redis and running workers, as verbs use them."""

from typing import TYPE_CHECKING, Any

from redis import Redis

from config.settings import Settings
from tasks.connection import check_rights, check_server, connect, locate

if TYPE_CHECKING:
    from celery import Celery


def connected(settings: Settings, url: str | None = None, *, rights: bool = False) -> Redis:
    """A client of a Redis that answers and, with `rights`, allows work. Raises RedisUnavailableError."""
    client = connect(url or locate(settings), socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    check_server(client)
    if rights:
        check_rights(client)
    return client


def ask(
    app: "Celery", names: list[str], command: str, arguments: dict[str, Any], *, seconds: float, awaited: int = 0
) -> dict[str, Any]:
    """The workers' answers by name, as soon as `awaited` of them (0: all) have come, or after `seconds`."""
    if not names:
        return {}
    replies = app.control.broadcast(
        command, arguments=arguments, destination=names, reply=True, timeout=seconds, limit=awaited or len(names)
    )
    return {name: answer for reply in replies or [] for name, answer in reply.items()}
