"""The Celery app: one queue, JSON only, late acks, no results.

What is left to do is in the ledger (`tasks.queue.ledger`), so a message that is lost or delivered twice costs nothing.
Kombu's keys get our prefix: other Celery applications on the same Redis database share its `unacked` keys.
"""

import socket
from typing import Any, Final

from celery import Celery
from kombu import pools
from kombu.entity import Exchange, Queue
from kombu.utils.url import parse_url

from config.settings import Settings
from tasks import keys
from tasks.redis_url import parsed

#: Seconds of silence after which the other end is asked whether it is there (macOS has another name for it), seconds
#: between two such questions, and how many of them may go unanswered.
KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}

app: Final = Celery("themes", set_as_current=False, include=["tasks.queue.task"])


def configure(settings: Settings, broker_url: str) -> Celery:
    """Set the app up for these settings; returns it.

    Called again with another broker, it forgets the connections to the first one.
    """
    target = parsed(broker_url)
    broker_url = target.text
    if target.sentinels:
        # Late: most have no Sentinel.
        from tasks.queue.sentinel_broker import followed

        broker_url = followed(target)
    if app.conf.broker_url not in {None, broker_url}:
        _forget_connections()
    app.conf.update(_configuration(settings, broker_url))
    app.conf.broker_use_ssl = _tls(target.text)
    return app


def _forget_connections() -> None:
    """Drop the pools that Celery made for the broker so far: it looks at its URL only once."""
    closed = app._pool  # noqa: SLF001  # as Celery's own `_after_fork` does
    if closed is not None:
        closed.force_close_all()
        app._pool = None  # noqa: SLF001
        # kombu keeps pools by address, and would hand out the closed one when that is asked for again.
        for group in (pools.connections, pools.producers):
            for address in [one for one, pool in group.items() if closed in (pool, getattr(pool, "connections", None))]:
                group.pop(address)
    app.amqp._producer_pool = None  # noqa: SLF001


def _configuration(settings: Settings, broker_url: str) -> dict[str, Any]:
    return {
        "broker_url": broker_url,
        "broker_transport_options": {
            "global_keyprefix": keys.PREFIX,
            "priority_steps": list(keys.PRIORITIES),
            "sep": keys.PRIORITY_SEPARATOR,
            "queue_order_strategy": "priority",
            "visibility_timeout": settings.celery.visibility_timeout_seconds,
            # kombu polls with BRPOP for 1 s; an answer that takes longer than this is a lost connection.
            "socket_timeout": settings.redis.socket_timeout_seconds,
            "socket_connect_timeout": settings.redis.socket_timeout_seconds,
            "socket_keepalive": True,
            "socket_keepalive_options": _keepalive(),
            "retry_on_timeout": True,
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_default_queue": keys.QUEUE,
        "task_queues": [Queue(keys.QUEUE, Exchange(keys.QUEUE, type="direct"), routing_key=keys.QUEUE)],
        "task_default_exchange": keys.QUEUE,
        "task_default_routing_key": keys.QUEUE,
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_backend": None,
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_track_started": True,
        "worker_prefetch_multiplier": 1,
        "worker_pool": "threads",
        "worker_concurrency": settings.performance_optimization.worker_pool_size,
        "worker_send_task_events": True,
        "task_send_sent_event": False,
        "worker_redirect_stdouts": False,
        # Late-acked chunks go on after a lost connection: their leases, not Celery, name their owner.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "enable_utc": True,
    }


def _keepalive() -> dict[int, int]:
    """Socket options as redis-py sets them; kombu would have it set none, which is two hours on Linux.

    Flower sends nothing over the connection that it hears events on: where its server has forgotten it, nothing else
    would tell.
    """
    return {getattr(socket, name): seconds for name, seconds in KEEPALIVE.items() if hasattr(socket, name)}


def _tls(broker_url: str) -> dict[str, Any] | None:
    """What a URL says of its server's certificate. It is verified where nothing is said: kombu alone would not.

    Flower's page of the broker reads the options here only.
    """
    if not broker_url.startswith("rediss://"):
        return None
    said: dict[str, Any] = parse_url(broker_url).get("ssl", {})
    return {"ssl_cert_reqs": "required"} | said
