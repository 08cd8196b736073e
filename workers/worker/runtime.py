"""One worker process's engine: an asyncio loop in a thread of its own, and the resources that live on it.

Celery's task threads hand a chunk over and wait. There is one loop for the life of the process, made after the process
has started and closed once at its end; nothing that belongs to it is touched from anywhere else.

Start: Redis, the engine (`workers.worker.parts`: cache, pool, whose limiters listen, generator, processor), publisher,
lanes, heartbeat; connections are warmed meanwhile.
Stop, in this order: no new destinations (`drain`); what is in hand ends within the grace time or is cancelled and given
back; heartbeat; lanes; publisher; the engine; Redis; the loop.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
import uuid
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Final

from celery import Celery
from redis import RedisError
from redis.asyncio import Redis

from config.errors import ThemesError
from config.settings import Settings
from tasks import keys
from tasks import worker_reports as fleet
from tasks.connection import connect, connect_async
from tasks.jobs.registry import options_of
from tasks.messages import Destination, Event, JobOptions, StageRecord
from tasks.queue.leases import token_prefix
from tasks.queue.ledger import Ledger
from tasks.queue.producer import publish
from workers.llm.budget import Budget
from workers.llm.cache.memory import MIB
from workers.llm.cache.stats import CacheReporter
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.cancellation import Halt
from workers.llm.endpoints.health import look_after
from workers.observe.call_file import FOLDER
from workers.observe.call_journal import CallJournal
from workers.observe.collector import calm_collector
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.graph import Graph
from workers.pipeline.processor import FocusedPromptProcessor
from workers.pipeline.prompts import stages_of
from workers.process.shutdown import end_tasks
from workers.results.journal import replay_journals
from workers.results.publisher import EventPublisher
from workers.worker.chunks import ChunkRunner
from workers.worker.control import JobControl
from workers.worker.destination import Processed
from workers.worker.heartbeat import Heartbeat
from workers.worker.lanes import Lanes
from workers.worker.memory_guard import Bounds, MemoryGuard
from workers.worker.parts import open_engine
from workers.worker.rebalance import WorkSharing
from workers.worker.telemetry import Watched, profiled

if TYPE_CHECKING:
    from workers.llm.endpoints.pool import LLMConnectionPool

log = logging.getLogger("themes.runtime")

#: Seconds that the loop may take to start or to close.
LOOP_SECONDS: Final = 30.0
#: Seconds that the loop may take to come to a change of its settings.
TUNE_SECONDS: Final = 5.0
#: Jobs whose options are remembered.
REMEMBERED_JOBS: Final = 1_000


class Runtime:
    """Everything that a worker process needs to turn chunks into results."""

    def __init__(self, app: Celery, settings: Settings, redis_url: str, *, name: str, lanes: int) -> None:
        self._app = app
        self._settings = settings
        self._redis_url = redis_url
        self._name = name
        self._size = lanes
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._started: Future[None] = Future()
        self._close: asyncio.Event | None = None
        self._chunks: ChunkRunner | None = None
        self._graph = Graph(stages_of(settings))
        self._options: dict[str, JobOptions] = {}
        self._began = time.time()
        self._draining = False
        self._pool: LLMConnectionPool | None = None
        self._guard: MemoryGuard | None = None
        #: What can be changed while we run, as the heartbeat tells it.
        self._tuned: dict[str, Any] = {}

    def __repr__(self) -> str:
        state = "draining" if self._draining else "running" if self._started.done() else "starting"
        return f"<Runtime {self._name} {state} {self._chunks!r}>"

    # Called from Celery's threads.

    def start(self) -> None:
        """Build everything and wait until it stands.

        Raises:
            ThemesError: what the settings ask for cannot be built.
        """
        self._thread = threading.Thread(target=self._run_loop, name="themes-loop", daemon=True)
        self._thread.start()
        self._started.result(timeout=LOOP_SECONDS)

    def process_chunk(self, job_id: str, chunk_id: str) -> str:
        """Work on a chunk and wait for its end; returns what became of it."""
        assert self._loop  # noqa: S101  # Celery starts tasks after `start`
        assert self._chunks  # noqa: S101
        future = asyncio.run_coroutine_threadsafe(self._chunks.run(job_id, chunk_id), self._loop)
        try:
            return future.result()
        except CancelledError:
            # Stopped in the middle: the chunk is in the ledger, its lease is released, its LLM answers are cached.
            return "cancelled"

    @property
    def busy(self) -> int | None:
        """Messages in hand; None when nothing is started any more. May be read from any thread."""
        return None if self._draining or self._chunks is None else self._chunks.claimed

    def drain(self) -> None:
        """Start nothing any more; what waits is given back. Returns at once."""
        self._draining = True
        if self._loop and self._chunks and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._chunks.stop)

    def tune(self, settings: Settings, report: dict[str, Any]) -> None:
        """Keep to other sizes and limits from now on; `report` is what the heartbeat says of them.

        Raises:
            ThemesError: this worker is stopping.
            TimeoutError: the loop has not come to it; nothing was changed.
        """
        if self._loop is None or self._draining or self._loop.is_closed():
            raise ThemesError("this worker is stopping: what is changed holds for the one that is started next")
        future = asyncio.run_coroutine_threadsafe(self._tune(settings, report), self._loop)
        try:
            future.result(TUNE_SECONDS)
        except TimeoutError:
            future.cancel()
            raise

    def close(self) -> None:
        """Let what is in hand end within the grace time, give the rest back, and close everything."""
        if self._thread is None or not self._thread.is_alive():
            return
        if self._loop and self._close:
            self._loop.call_soon_threadsafe(self._close.set)
        self._thread.join(self._settings.work.shutdown_grace_seconds + LOOP_SECONDS)

    # On the loop.

    async def _tune(self, settings: Settings, report: dict[str, Any]) -> None:
        """Plain assignments, none of which can fail: all of it is done, or nothing."""
        if self._pool is not None and self._guard is not None:
            self._pool.tune(settings)
            self._guard.change(_bounds(settings, settings.performance_optimization.worker_pool_size))
        self._tuned = report

    def _run_loop(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as exc:  # handed to the thread that waits in `start`, or said
            if self._started.done():
                log.critical("action=runtime_lost the worker's loop ended: %s", exc, exc_info=exc)
            else:
                self._started.set_exception(exc)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._close = asyncio.Event()
        settings = self._settings
        limits = settings.performance_optimization
        profiler = PerformanceProfiler(
            enabled=limits.enable_performance_profiling,
            role="worker",
            name=self._name,
            slowest_kept=settings.profiling.slowest_kept,
        )
        async with contextlib.AsyncExitStack() as stack:
            redis = connect_async(self._redis_url, socket_timeout_seconds=settings.redis.socket_timeout_seconds)
            stack.push_async_callback(redis.aclose)
            budget = Budget(redis, settings)
            stack.push_async_callback(budget.close)
            # The guard looks at memory, for lanes and cache together.
            engine = await stack.enter_async_context(
                open_engine(settings, self._graph, profiler=profiler, redis=redis, pressure_mb=0)
            )
            self._pool = pool = engine.pool
            counts = CacheReporter(engine.cache, redis)
            stack.push_async_callback(self._tell_last, counts)
            publisher = await stack.enter_async_context(
                EventPublisher(
                    redis,
                    settings.streaming,
                    enabled=limits.enable_streaming_results,
                    max_bytes=limits.max_streaming_chunk_size,
                )
            )
            lanes: Lanes[Destination] = Lanes(
                self._size, steal=limits.enable_work_stealing, steal_threshold=limits.work_steal_threshold
            )
            await stack.enter_async_context(lanes)
            guard = await self._watch_memory(stack, lanes, engine.cache)
            ledger = Ledger(
                redis,
                token=f"{token_prefix(self._name, os.getpid())}{uuid.uuid4().hex[:8]}",
                lease_seconds=settings.work.lease_seconds,
                compress=limits.enable_result_compression,
            )
            journal = await asyncio.to_thread(self._journal)
            stack.callback(journal.close)
            self._chunks = ChunkRunner(
                ledger=ledger,
                lanes=lanes,
                process=self._processing(engine.processor, publisher, budget),
                wake=self._wake,
                options=lambda job_id: self._read_options(redis, job_id),
                settings=settings,
                profiler=profiler,
                worker=self._name,
                journal=journal,
                may_take=guard.may_take,
            )
            warming = asyncio.create_task(
                look_after(
                    pool, minimum=limits.llm_connection_pool_min_size, seconds=limits.health_check_interval_seconds
                ),
                name="warm",
            )
            broker = redis
            if settings.celery.broker_url:
                broker = connect_async(
                    settings.celery.broker_url, socket_timeout_seconds=settings.redis.socket_timeout_seconds
                )
                stack.push_async_callback(broker.aclose)
            sharing = WorkSharing(
                self._chunks,
                queued=lambda: ledger.queued(broker),
                idle_lanes=lambda: fleet.idle_lanes(redis, besides=self._name),
                steal=limits.enable_work_stealing,
            )
            share = asyncio.create_task(sharing.run(), name="sharing")
            control = asyncio.create_task(JobControl(redis, self._chunks.look).run(), name="control")
            heart = asyncio.create_task(self._renew(self._chunks), name="leases")
            heartbeat = Heartbeat(
                redis,
                self._name,
                lanes=lanes,
                chunks=self._chunks,
                pool=pool,
                cache=engine.cache,
                counts=counts,
                profiler=profiler,
                journal=journal,
                publisher=publisher,
                sharing=sharing,
                memory=guard.report,
                settings=lambda: self._tuned,
                seconds=limits.profile_interval_seconds,
            )
            report = asyncio.create_task(heartbeat.run(), name="heartbeat")
            stack.push_async_callback(end_tasks, heart, report, warming, control, share)
            await stack.enter_async_context(
                profiled(
                    profiler,
                    redis,
                    settings,
                    Watched(lanes=lanes, pool=pool, cache=engine.cache, publisher=publisher, sharing=sharing),
                )
            )
            calm_collector()
            log.info("action=start %r %r", self, pool)
            self._started.set_result(None)
            await self._close.wait()
            self._chunks.stop()
            await self._chunks.settle(self._settings.work.shutdown_grace_seconds)
            with contextlib.suppress(RedisError, OSError):
                await heartbeat.leave()

    async def _watch_memory(
        self, stack: contextlib.AsyncExitStack, lanes: Lanes[Destination], cache: PersistentLLMCache
    ) -> MemoryGuard:
        """Keep lanes and cache to what memory allows, for as long as the stack stands."""
        self._guard = MemoryGuard(_bounds(self._settings, self._size), lanes=lanes, cache=cache.memory)
        watching = asyncio.create_task(self._guard.run(), name="memory")
        stack.push_async_callback(end_tasks, watching)
        return self._guard

    def _processing(
        self,
        processor: FocusedPromptProcessor,
        publisher: EventPublisher,
        budget: Budget,
    ) -> Any:
        """What the chunk runner calls for each destination."""

        async def process(destination: Destination, halt: Halt, options: JobOptions, attempt: int) -> Processed:
            job_id = halt.job_id

            def on_stage(_: Destination, record: StageRecord, count: int, found: list[str]) -> None:
                data = {
                    "stage": record.stage,
                    "status": record.status,
                    "source": record.source,
                    "answers": count,
                    "found": found,
                    "elapsed_ms": record.elapsed_ms,
                }
                publisher.publish(Event("stage.done", job_id, destination.id, data=data | {"name": destination.label}))

            outcome = await processor.process(
                destination,
                use_cache=options.use_cache,
                columns=options.columns,
                attempt=attempt,
                on_stage=on_stage,
                budget=None if options.budget_usd is None else budget.of(job_id),
                halt=halt,
            )
            return outcome.profile, outcome.failure, outcome.usage, outcome.is_retryable

        return process

    def _journal(self) -> CallJournal:
        """Where this process writes down what is in work; first it books what dead ones have left."""
        with connect(self._redis_url, socket_timeout_seconds=self._settings.redis.socket_timeout_seconds) as redis:
            replay_journals(self._settings, redis)
        return CallJournal.in_folder(self._settings.state_dir / FOLDER, worker=self._name, lanes=self._size)

    async def _wake(self, job_id: str, labelled: list[tuple[str, str]], priority: int) -> None:
        await asyncio.to_thread(publish, self._app, job_id, labelled, priority, first=True)

    async def _read_options(self, redis: Redis, job_id: str) -> JobOptions:
        known = self._options.get(job_id)
        if known is None:
            raw = await redis.hget(keys.job(job_id), "options")
            known = options_of(raw)
            if len(self._options) >= REMEMBERED_JOBS:
                self._options.clear()
            self._options[job_id] = known
        return known

    async def _renew(self, chunks: ChunkRunner) -> None:
        """Renew the leases of what is held, for as long as this process lives."""
        while True:
            try:
                await chunks.renew()
            except (RedisError, OSError) as exc:
                log.warning("action=heartbeat_missed Redis does not answer: %s", exc)
            await asyncio.sleep(self._settings.work.heartbeat_seconds)

    @staticmethod
    async def _tell_last(counts: CacheReporter) -> None:
        with contextlib.suppress(RedisError, OSError):  # Redis is away: they are lost, as after a kill
            await counts.report()


def _bounds(settings: Settings, lanes: int) -> Bounds:
    limits = settings.performance_optimization
    return Bounds(limits.memory_pressure_threshold_mb * MIB, limits.max_memory_cache_mb * MIB, lanes)
