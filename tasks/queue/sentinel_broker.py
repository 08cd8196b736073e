"""kombu's Redis transport where Sentinel knows the master; loaded for no other broker.

kombu has one of its own, which takes the list of sentinels and the master's name as options, where a password for the
sentinels would be on Flower's pages.
"""

from typing import Any, ClassVar, Final

from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis

from tasks.redis_url import RedisUrl
from tasks.sentinel import MasterConnection, SslMasterConnection, options_of

SCHEME: Final = "sentinel"


class Channel(kombu_redis.Channel):
    connection_class: Any = MasterConnection
    connection_class_ssl: Any = SslMasterConnection
    #: Of this process's broker.
    url: ClassVar[RedisUrl]

    def _connparams(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002  # kombu's signature
        return super()._connparams(asynchronous) | options_of(self.url)  # type: ignore[no-untyped-call]  # kombu


class Transport(kombu_redis.Transport):
    Channel = Channel


def followed(url: RedisUrl) -> str:
    """The URL by which Celery finds this broker in this process, from now on."""
    Channel.url = url
    TRANSPORT_ALIASES[SCHEME] = f"{__name__}:{Transport.__name__}"
    return SCHEME + url.text[url.text.index(":") :]
