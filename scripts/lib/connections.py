"""Redis as a verb uses it."""

from redis import Redis

from config.settings import Settings
from tasks.connection import check_rights, check_server, connect, locate


def connected(settings: Settings, url: str | None = None, *, rights: bool = False) -> Redis:
    """A client of the Redis in use, or of the one at `url`, that answers and, with `rights`, allows what work needs.

    Raises:
        RedisUnavailableError: there is none to use; the message has the mend.
    """
    client = connect(url or locate(settings), socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    check_server(client)
    if rights:
        check_rights(client)
    return client
