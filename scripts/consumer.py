"""`themes consumer`: writes results to the database, and sends chunks that no worker holds again."""

import asyncio
import logging
import os
import secrets
import signal
import socket

import click
from redis.asyncio import Redis

from config.settings import Settings
from scripts.lib.connections import connected
from scripts.main import settings_from
from tasks import tracing
from tasks.connection import connect_async, locate
from workers.process.file_descriptors import consumer_descriptors, ensure_descriptors

log = logging.getLogger("themes.consumer")


@click.command(epilog="Example: themes consumer")
def command() -> None:
    """Write results to the database until stopped."""
    settings = settings_from()
    url = locate(settings)
    connected(settings, url, rights=True).close()
    ensure_descriptors("consumer", consumer_descriptors(settings))
    tracing.start(settings, "consumer")
    try:
        asyncio.run(consume(settings, url))
    finally:
        tracing.stop()


async def consume(settings: Settings, url: str) -> None:
    """Consume and sweep until SIGTERM or SIGINT, or until the database cannot be used."""
    # Late: the other verbs do without SQLAlchemy.
    from workers.observe.collector import calm_collector
    from workers.observe.profiler import PerformanceProfiler
    from workers.process.shutdown import end_tasks
    from workers.results.consumer import ResultsConsumer
    from workers.results.database.manager import AsyncDatabaseManager
    from workers.results.journal import keep_replaying
    from workers.results.sweeper import Sweeper
    from workers.results.webhook import PauseNotices

    timeout = settings.redis.socket_timeout_seconds
    redis = connect_async(url, socket_timeout_seconds=timeout)
    broker_url = settings.celery.broker_url or url
    broker = connect_async(broker_url, socket_timeout_seconds=timeout)
    # Containers may share host name and process id, and consumers of one name would take each other's entries.
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
    async with AsyncDatabaseManager.from_settings(settings) as store:
        is_profiled = settings.performance_optimization.enable_performance_profiling
        profiler = PerformanceProfiler(enabled=is_profiled, role="consumer", name=name, slowest_kept=0)
        profiler.fact("database_batch_size", lambda: settings.performance_optimization.database_batch_size)
        profiler.fact("flush_interval_seconds", lambda: settings.database.flush_interval_seconds)
        profiler.fact("database", lambda: store.dialect)
        profiler.fact("cpu_count", os.cpu_count)
        consumer = ResultsConsumer(redis, store, settings, name, profiler=profiler)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, consumer.stop)
        notices = PauseNotices(redis) if settings.webhook.url else None
        sweeping = asyncio.create_task(
            Sweeper(redis, broker, settings, url=url, missing=store.missing, notices=notices).run(),
            name="sweeper",
        )

        sending = asyncio.create_task(_post(redis, settings), name="webhook")

        def knows(job_id: str) -> bool:
            return asyncio.run_coroutine_threadsafe(store.job(job_id), loop).result(timeout) is not None

        booking = asyncio.create_task(keep_replaying(settings, url, knows=knows), name="orphans")
        calm_collector()
        log.info("action=start consumer=%s %r", name, store)
        try:
            await consumer.run()
        finally:
            await end_tasks(sweeping, booking, sending)
            await redis.aclose()
            await broker.aclose()


async def _post(redis: Redis, settings: Settings) -> None:
    """Post notices until cancelled, where a URL is set."""
    if settings.webhook.url:
        # Late: a consumer without it needs no HTTP client.
        from workers.results.webhook_sender import WebhookSender

        async with WebhookSender(redis, settings.webhook) as sender:
            await sender.run()
