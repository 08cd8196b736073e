"""kombu's Redis transport, which survives garbage in the queue and reconnects quickly.

kombu trusts what it pops: one entry that is no JSON, or JSON of another shape, ends a stock worker process
("Unrecoverable error"). Here every entry is checked first; what is not a call of our one task (in other queues: no
reply to Celery's remote control) goes to `themes:queue:dead` with the reason. Celery loads this by name
(`broker_transport`, set in worker processes alone), so users write redis:// and rediss://.
"""

import base64
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import redis
from kombu.connection import Connection as KombuConnection
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.transport.virtual import Empty

from tasks import keys
from tasks.queue.wire import PROCESS_CHUNK

log = logging.getLogger("themes.queue")

#: Bytes of a message, at most. Ours have about 1,000: ids, a label, Celery's headers.
MAX_BYTES: Final = 65_536
#: Characters of an id in a message's arguments, at most.
MAX_ID: Final = 200
#: Bytes of a dead entry that are kept to be looked at.
KEPT_BYTES: Final = 2_000
#: Seconds between two lines about dead entries: there may be thousands.
SAY_SECONDS: Final = 10.0
#: Seconds between two tries to reach Redis.
RECONNECT_SECONDS: Final = 1.0


class DeadMessageError(ValueError):
    """This entry of a queue is not what belongs there."""


def accepted(item: bytes, task: str | None) -> dict[str, Any]:
    """An entry of a queue as kombu takes it: a call of `task`, or any message of Celery's own where that is None.

    Raises `DeadMessageError` with the reason: it is none.
    """
    if task is not None and len(item) > MAX_BYTES:
        raise DeadMessageError(f"{len(item)} bytes, at most {MAX_BYTES} are allowed")
    try:
        message = json.loads(item.decode())
    except (ValueError, RecursionError) as exc:
        raise DeadMessageError(f"no JSON: {exc}") from exc
    headers, properties = _part(message, "headers"), _part(message, "properties")
    info = _part(properties, "delivery_info")
    texts: list[tuple[dict[str, Any], str, str | None]] = [
        (message, "content-type", "application/json"),
        (message, "content-encoding", "utf-8"),
        (properties, "body_encoding", "base64"),
        (properties, "delivery_tag", None),
        (info, "exchange", None),
        (info, "routing_key", None),
    ]
    if task is not None:
        texts += [(headers, "task", task), (headers, "id", None)]
    for part, name, wanted in texts:
        value = part.get(name)
        if not isinstance(value, str) or (wanted is not None and value.lower() != wanted):
            raise DeadMessageError(f"{name} is {value!r:.100}" + (f", not {wanted}" if wanted else ""))
    if properties.get("priority") is not None and not isinstance(properties["priority"], int):
        raise DeadMessageError("its priority is no number")
    body = _body(message.get("body"))
    if task is not None:
        _check_call(body)
    return message  # type: ignore[no-any-return]  # an object, as `_part` has found


def _part(whole: Any, name: str) -> dict[str, Any]:
    part = whole.get(name) if isinstance(whole, dict) else None
    if not isinstance(part, dict):
        raise DeadMessageError(f"no {name}")
    return part


def _body(text: Any) -> Any:
    try:
        return json.loads(base64.b64decode(text, validate=True))
    except (ValueError, TypeError, RecursionError) as exc:
        raise DeadMessageError(f"its body cannot be read: {exc}") from exc


def _check_call(body: Any) -> None:
    """See that a body holds two ids, and options."""
    try:
        args, kwargs, embedded = body
    except (ValueError, TypeError) as exc:
        raise DeadMessageError(f"its body cannot be read: {exc}") from exc
    if kwargs or not isinstance(embedded, dict | None) or not isinstance(args, list):
        raise DeadMessageError("its body has other arguments than a job's and a chunk's id")
    if [type(one) for one in args] != [str, str] or not all(0 < len(one) <= MAX_ID for one in args):
        raise DeadMessageError("its arguments are not a job's and a chunk's id")
    if not all(one.isascii() and one.isprintable() for one in args):
        raise DeadMessageError("its ids have characters that no id has")


class QoS(kombu_redis.QoS):
    """Survives a Redis that refuses to write because its memory is full: kombu would end the process.

    kombu's record of messages in hand is not needed: the ledger has what is left to do. Chunks are fetched when the
    lanes have use for one: what a worker does not need yet stays in the queue, for others.
    """

    #: Whether this process has use for another chunk, by the number of messages in hand (`workers.app`).
    wants_chunk: Callable[[int], bool] = staticmethod(lambda _: True)

    def can_consume(self) -> bool:
        """As kombu's, where a chunk is wanted. What was asked for already is taken: Redis may have popped it."""
        channel = self.channel
        if not channel._in_poll and keys.QUEUE in channel.active_queues:  # noqa: SLF001  # kombu
            in_hand = len(self._delivered) - len(self._dirty)
            if not self.wants_chunk(in_hand):
                return False
        return bool(super().can_consume())  # type: ignore[no-untyped-call]  # kombu

    def append(self, message: Any, delivery_tag: Any) -> None:
        """As kombu's; unrecorded where Redis takes no record."""
        try:
            super().append(message, delivery_tag)  # type: ignore[no-untyped-call]  # kombu
        except redis.ResponseError as exc:
            log.warning("action=broker_refuses a message in hand is not recorded by Celery: %s", exc)
            virtual.QoS.append(self, message, delivery_tag)  # type: ignore[no-untyped-call]  # kombu

    def ack(self, delivery_tag: Any) -> None:
        """As kombu's; where Redis refuses, the sweeper removes the record."""
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]  # kombu
        except redis.ResponseError as exc:
            log.warning("action=broker_refuses an acknowledgement is not recorded by Celery: %s", exc)
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]  # kombu

    def restore_visible(self, *args: Any, **options: Any) -> None:
        """As kombu's, another time where Redis refuses."""
        try:
            super().restore_visible(*args, **options)  # type: ignore[no-untyped-call]  # kombu
        except redis.ResponseError as exc:
            log.warning("action=broker_refuses messages of lost workers are looked for later: %s", exc)


class Channel(kombu_redis.Channel):
    QoS = QoS
    dead = 0
    _said_at = float("-inf")
    #: What commands beside the waiting one go through: kombu makes a new client for each of them.
    _shared: Any = None

    @contextlib.contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """As kombu's, with one client for as long as its pool lives."""
        if client is None:
            client = self._shared
            if client is None or client.connection_pool is not self.pool:
                client = self._shared = self._create_client()  # type: ignore[no-untyped-call]  # kombu
        yield client

    def _brpop_read(self, **options: Any) -> bool:
        """As kombu's, but for what is no message: that is buried, and nothing was there."""
        try:
            try:
                reply = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            if not reply:
                raise Empty
            place, item = reply
            queue = place.decode().rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            message = self._accepted(queue, item)
            if message is None:
                raise Empty
            self.connection._deliver(message, queue)  # noqa: SLF001  # as kombu's own
        finally:
            self._in_poll = None  # type: ignore[assignment]  # kombu's own value for it
            self._flush_brpop_reauth()  # type: ignore[no-untyped-call]  # kombu
        return True

    def _get(self, queue: Any, timeout: Any = None) -> dict[str, Any]:
        """The most urgent message of a queue."""
        del timeout
        with self.conn_or_acquire() as client:
            for priority in self.priority_steps:
                while item := client.rpop(self._q_for_pri(queue, priority)):  # type: ignore[no-untyped-call]  # kombu
                    message = self._accepted(queue, item)
                    if message is not None:
                        return message
        raise Empty

    def _connparams(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002  # kombu's signature
        """As kombu's. A connection that was closed meanwhile is one that is lost, not the end of the worker."""
        if self.connection.client is None:
            raise redis.ConnectionError("the connection to the broker was closed")
        return super()._connparams(asynchronous)  # type: ignore[no-untyped-call]  # kombu

    def _accepted(self, queue: str, item: bytes) -> dict[str, Any] | None:
        """The message, or None when that was buried. Queues beside ours hold replies to Celery's remote control."""
        try:
            return accepted(item, PROCESS_CHUNK if queue == keys.QUEUE else None)
        except DeadMessageError as exc:
            self._bury(item, str(exc))
            return None

    def _bury(self, item: bytes, reason: str) -> None:
        cls = type(self)
        cls.dead += 1
        now = time.monotonic()
        if now - cls._said_at > SAY_SECONDS:
            cls._said_at = now
            log.error("action=message_dead dead=%d what is in a queue does not belong there: %s", cls.dead, reason)
        entry = json.dumps({"at": time.time(), "reason": reason, "entry": repr(item[:KEPT_BYTES])})
        with self.conn_or_acquire() as client:
            # kombu's client puts our prefix before the key of the one command and not of the other.
            client.lpush(keys.QUEUE_DEAD.removeprefix(keys.PREFIX), entry)
            client.ltrim(keys.QUEUE_DEAD, 0, keys.DEAD_ENTRIES - 1)


class Transport(kombu_redis.Transport):
    Channel = Channel


class Connection(KombuConnection):
    """A connection that is tried again every second.

    kombu waits 2 seconds longer each time: after half a minute without Redis a worker would stay away for another 12.
    """

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        """As kombu's, with short waits."""
        steady = {"interval_start": RECONNECT_SECONDS, "interval_step": 0, "interval_max": RECONNECT_SECONDS}
        return super().ensure_connection(*args, **steady | options)  # type: ignore[no-untyped-call]  # kombu
