"""The worker's transport where Sentinel knows the master; loaded for no other broker."""

from tasks.queue import sentinel_broker
from workers.worker import transport


class Channel(transport.Channel, sentinel_broker.Channel):
    """Survives garbage, and follows the master."""


class Transport(transport.Transport):
    Channel = Channel
