"""One worker process: an asyncio loop in a thread of its own, and the resources that live on it.

Celery's task threads hand a chunk over and wait. One loop lives as long as the process; no other thread touches what
belongs to it.

Start: Redis, publisher, the parts (`workers.worker.parts`), call journal, heartbeat.
Stop, in this order: no new destinations (`drain`); what is in hand ends within the grace time or is cancelled and given
back; heartbeat; the parts, lanes first; publisher; Redis; the loop.
"""

import asyncio
import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, Final

from redis import RedisError
from redis.asyncio import Redis

from config.errors import ThemesError
from config.settings import Settings
from tasks import keys
from tasks import worker_reports as fleet
from tasks.connection import connect, connect_async
from tasks.jobs.registry import options_of
from tasks.messages import JobOptions
from tasks.queue.leases import token_prefix
from tasks.queue.ledger import Ledger
from tasks.queue.producer import publish
from workers.llm.batches.course import Courses, batches_folder
from workers.llm.batches.keeper import BatchKeeper
from workers.llm.batches.redis_store import RedisBatchStore
from workers.llm.budget import Budget, dead_after_seconds
from workers.llm.cache.memory import MIB
from workers.llm.funds import limits_json
from workers.observe.call_file import FOLDER
from workers.observe.call_journal import CallJournal
from workers.observe.collector import calm_collector
from workers.observe.profiler import PerformanceProfiler
from workers.process.outage import Outage
from workers.process.shutdown import end_tasks
from workers.process.subscription import listen
from workers.results.journal import replay_journals
from workers.results.publisher import EventPublisher
from workers.worker.chunks import ChunkRunner
from workers.worker.heartbeat import Heartbeat
from workers.worker.memory_guard import Bounds, MemoryGuard
from workers.worker.parts import Parts, open_parts
from workers.worker.processing import known_of, process_of
from workers.worker.rebalance import Rebalancer
from workers.worker.telemetry import Watched, profiled, state_limits

log = logging.getLogger("themes.runtime")

#: Seconds that the loop may take to start or to close.
LOOP_SECONDS: Final = 30.0
#: Seconds that the loop may take to come to a change of its settings.
TUNE_SECONDS: Final = 5.0
#: Jobs whose options are remembered.
REMEMBERED_JOBS: Final = 1_000


class Runtime:
    """`on_hungry` is called, on the loop's thread, when `wants_chunk` has become true."""

    def __init__(
        self, settings: Settings, redis_url: str, *, name: str, on_hungry: Callable[[], None] | None = None
    ) -> None:
        self._settings = settings
        self._redis_url = redis_url
        self._queue = connect(
            settings.celery.broker_url or redis_url, socket_timeout_seconds=settings.redis.socket_timeout_seconds
        )
        self._name = name
        self._on_hungry = on_hungry
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._started: Future[None] = Future()
        self._close: asyncio.Event | None = None
        self._chunks: ChunkRunner | None = None
        #: By job and attempt: a later one may want other fields.
        self._options: dict[tuple[str, int], JobOptions] = {}
        self._draining = False
        self._parts: Parts | None = None
        self._guard: MemoryGuard | None = None
        #: What can be changed while we run, as the heartbeat tells it.
        self._tuned: dict[str, Any] = {}

    def __repr__(self) -> str:
        state = "draining" if self._draining else "running" if self._started.done() else "starting"
        return f"<Runtime {self._name} {state} {self._chunks!r}>"

    # Called from Celery's threads.

    def start(self) -> None:
        """Build everything, and wait for that. Raises `ThemesError`: what the settings ask for cannot be built."""
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

    def wants_chunk(self, in_hand: int) -> bool:
        """Whether the lanes have use for another chunk, of which so many are in hand. May be asked in any thread."""
        return self._chunks is None or self._chunks.wants_more(in_hand)

    def drain(self) -> None:
        """Start nothing any more; what waits is given back. Returns at once."""
        self._draining = True
        if self._loop and self._chunks and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._chunks.stop)

    def tune(self, settings: Settings, report: dict[str, Any]) -> None:
        """Change sizes and limits; the heartbeat tells `report`.

        Raises:
            ThemesError: this worker is stopping.
            TimeoutError: the loop is too busy; nothing was changed.
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
        if self._parts is not None and self._guard is not None:
            self._parts.pool.tune(settings)
            state_limits(settings, self._parts.profiler)
            self._guard.change(_bounds(settings))
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
        self._loop, self._close = asyncio.get_running_loop(), asyncio.Event()
        settings, limits = self._settings, self._settings.performance_optimization
        async with contextlib.AsyncExitStack() as stack:
            redis = self._connected(stack, self._redis_url)
            budget = Budget(redis, settings)
            stack.push_async_callback(budget.close)
            publisher = await stack.enter_async_context(
                EventPublisher(
                    redis,
                    settings.streaming,
                    enabled=limits.enable_streaming_results,
                    max_bytes=limits.max_streaming_chunk_size,
                )
            )
            # The guard keeps both lanes and cache to what memory allows.
            batches = RedisBatchStore(
                redis, wake=self._wake, lease_seconds=settings.work.lease_seconds,
                dead_after_seconds=dead_after_seconds(settings), limits=limits_json(settings),
                compress=limits.enable_result_compression,
            )  # fmt: skip
            self._parts = await stack.enter_async_context(
                open_parts(settings, self._profiler(), redis=redis, batches=batches, pressure_mb=0)
            )
            journal = await asyncio.to_thread(self._journal)
            stack.callback(journal.close)
            await self._work(stack, redis, self._parts, budget, publisher, journal, batches)

    async def _work(  # noqa: PLR0917  # what `_live` has opened
        self,
        stack: contextlib.AsyncExitStack,
        redis: Redis,
        parts: Parts,
        budget: Budget,
        publisher: EventPublisher,
        journal: CallJournal,
        batches: RedisBatchStore,
    ) -> None:
        """Run the tasks of this process until `close`."""
        self._guard = guard = MemoryGuard(_bounds(self._settings), lanes=parts.lanes, cache=parts.cache.memory)
        ledger = self._ledger(redis)
        self._chunks = chunks = ChunkRunner(
            ledger=ledger,
            lanes=parts.lanes,
            process=process_of(parts, publisher, budget),
            known=known_of(parts, publisher),
            wake=self._wake,
            options=lambda job_id, attempt: self._read_options(redis, job_id, attempt),
            settings=self._settings,
            profiler=parts.profiler,
            worker=self._name,
            journal=journal,
            may_take=guard.may_take,
        )
        if self._on_hungry is not None:
            parts.lanes.on_hungry = self._on_hungry
        broker_url = self._settings.celery.broker_url
        broker = self._connected(stack, broker_url) if broker_url else redis
        rebalancer = Rebalancer(
            chunks,
            ledger,
            wake=self._wake,
            queued=lambda: ledger.queued(broker),
            idle_lanes=lambda: fleet.idle_lanes(redis, besides=self._name),
            steal=self._settings.performance_optimization.enable_work_stealing,
        )
        heartbeat = Heartbeat(
            redis,
            self._name,
            parts,
            chunks=chunks,
            journal=journal,
            publisher=publisher,
            rebalancer=rebalancer,
            memory=guard.report,
            settings=lambda: self._tuned,
            seconds=self._settings.performance_optimization.profile_interval_seconds,
        )
        courses = Courses(batches, parts.pool.routes, self._settings, parts.profiler, batches_folder(self._settings))
        keeper = BatchKeeper(batches, courses, self._settings, pause=ledger.pause)
        tasks = {
            "batches": keeper.run(),
            "memory": guard.run(),
            "sharing": rebalancer.run(),
            "control": self._listen(redis, chunks),
            "leases": self._renew(chunks),
            "heartbeat": heartbeat.run(),
        }
        stack.push_async_callback(
            end_tasks, *(asyncio.create_task(coroutine, name=name) for name, coroutine in tasks.items())
        )
        watched = Watched(parts, publisher, rebalancer)
        await stack.enter_async_context(profiled(redis, self._settings, watched))
        calm_collector()
        log.info("action=start %r %r", self, parts.pool)
        self._started.set_result(None)
        await self._until_closed(chunks, heartbeat)

    async def _until_closed(self, chunks: ChunkRunner, heartbeat: Heartbeat) -> None:
        assert self._close  # noqa: S101  # made by `_live`
        await self._close.wait()
        chunks.stop()
        await chunks.settle(self._settings.work.shutdown_grace_seconds)
        with contextlib.suppress(RedisError, OSError):
            await heartbeat.leave()

    def _connected(self, stack: contextlib.AsyncExitStack, url: str) -> Redis:
        redis = connect_async(url, socket_timeout_seconds=self._settings.redis.socket_timeout_seconds)
        stack.push_async_callback(redis.aclose)
        return redis

    def _profiler(self) -> PerformanceProfiler:
        return PerformanceProfiler(
            enabled=self._settings.performance_optimization.enable_performance_profiling,
            role="worker",
            name=self._name,
            slowest_kept=self._settings.profiling.slowest_kept,
        )

    def _ledger(self, redis: Redis) -> Ledger:
        return Ledger(
            redis,
            token=f"{token_prefix(self._name, os.getpid())}{uuid.uuid4().hex[:8]}",
            lease_seconds=self._settings.work.lease_seconds,
            compress=self._settings.performance_optimization.enable_result_compression,
        )

    def _journal(self) -> CallJournal:
        """Where this process writes down what is in work; first it books what dead ones have left."""
        with connect(self._redis_url, socket_timeout_seconds=self._settings.redis.socket_timeout_seconds) as redis:
            replay_journals(self._settings, redis)
        lanes = self._settings.performance_optimization.worker_pool_size
        return CallJournal.in_folder(self._settings.state_dir / FOLDER, worker=self._name, lanes=lanes)

    async def _wake(self, job_id: str, labelled: list[tuple[str, str]], priority: int) -> None:
        await asyncio.to_thread(publish, self._queue, job_id, labelled, priority, first=True)

    async def _read_options(self, redis: Redis, job_id: str, attempt: int) -> JobOptions:
        known = self._options.get((job_id, attempt))
        if known is None:
            raw = await redis.hget(keys.job(job_id), "options")
            known = options_of(raw)
            if len(self._options) >= REMEMBERED_JOBS:
                self._options.clear()
            self._options[job_id, attempt] = known
        return known

    async def _renew(self, chunks: ChunkRunner) -> None:
        """Renew the leases of what is held, for as long as this process lives."""
        outage = Outage(
            log,
            lost="action=heartbeat_missed Redis does not answer: %s",
            back="action=heartbeat_back Redis answers, leases are renewed again",
        )
        while True:
            try:
                await chunks.renew()
            except (RedisError, OSError) as exc:
                outage.begin(exc)
            else:
                outage.end()
            await asyncio.sleep(self._settings.work.heartbeat_seconds)

    async def _listen(self, redis: Redis, chunks: ChunkRunner) -> None:
        """Look at a job as soon as it is cancelled or paused; the heartbeat looks at every job."""

        async def look(job_id: str) -> None:
            if job_id == keys.CACHE_CLEARED and self._parts is not None:
                self._parts.cache.memory.clear()
                return
            await chunks.cancellations.look([job_id])

        await listen(
            redis,
            keys.CONTROL,
            look,
            listening=asyncio.Event(),
            log=logging.getLogger("themes.control"),
            unheard="action=control_unheard Redis does not answer: %s",
        )


def _bounds(settings: Settings) -> Bounds:
    limits = settings.performance_optimization
    cache_bytes = limits.max_memory_cache_mb * MIB
    return Bounds(limits.memory_pressure_threshold_mb * MIB, cache_bytes, limits.worker_pool_size)
