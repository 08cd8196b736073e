"""Split a job into chunks and publish them.

    job = enqueue(["Kyoto, Japan", {"name": "Paris", "country": "France"}])
    for event in tasks.jobs.events.follow(job):
        print(event.type, event.destination_id)

Chunk sizes follow guided self-scheduling (Polychronopoulos & Kuck, IEEE ToC 1987): each chunk is a fixed part of what
is left, so large jobs cost few messages, and the last chunks are single destinations. A chunk feeds several lanes: a
worker fetches one when its lanes have use for it (`workers.worker.lanes`), and leaves the others in the queue.

The ledger is written before the messages: the sweeper sends a lost one again, and a second one finds its chunk gone.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final

from redis import Redis, RedisError

from config.endpoints import TIERS
from config.settings import Settings, load
from tasks import keys, tracing
from tasks.connection import check_server, connect, locate, translated
from tasks.errors import InputError, JobStoppedError
from tasks.inputs.reader import from_iterable
from tasks.jobs import budget
from tasks.jobs import registry as jobs
from tasks.jobs.teams import check_team
from tasks.messages import Chunk, Destination, JobOptions, JobSealed
from tasks.queue.ledger import write_chunks
from tasks.queue.wire import chunk_message, priority_on_the_wire
from tasks.storable import entry_fields
from tasks.texts import clean_line
from tasks.worker_reports import workers

log = logging.getLogger("themes.producer")

#: Worker processes that a job is cut for while none has a heartbeat yet.
ASSUMED_WORKERS: Final = 2
#: Chunks that feed the lanes of one worker process together.
CHUNKS_A_WORKER: Final = 4
#: Destinations written to the ledger, and their messages published, at once.
FLUSH_DESTINATIONS: Final = 2_000
#: Signs of life in the time after which a producer counts as dead.
RENEWALS: Final = 4
PUBLISH_BATCH: Final = 1_000
#: Characters of a task's arguments shown in Flower.
LABEL_CHARACTERS: Final = 120


def chunk_size(left: int, parts: int, largest: int) -> int:
    """How many destinations the next chunk takes of those that are `left`."""
    return max(1, min(largest, left // max(1, parts)))


def cut(destinations: Iterator[Destination], *, parts: int, largest: int) -> Iterator[tuple[Destination, ...]]:
    """Cut a stream of unknown length into chunks that shrink towards its end.

    Looks ahead just far enough to know that a chunk of `largest` is still right; memory does not grow with the stream.
    """
    window: deque[Destination] = deque()
    lookahead = max(1, parts) * largest
    while True:
        window.extend(islice(destinations, lookahead - len(window)))
        if not window:
            return
        size = chunk_size(len(window), parts, largest)
        yield tuple(window.popleft() for _ in range(size))


def parts_of(redis: Redis, settings: Settings) -> int:
    """Into how many chunks what is left of a job could be cut now: each feeds a part of the smallest worker's lanes."""
    lanes = [report.lanes for report in workers(redis).values() if report.lanes > 0]
    lanes = lanes or [settings.performance_optimization.worker_pool_size] * ASSUMED_WORKERS
    return sum(lanes) // max(1, min(lanes) // CHUNKS_A_WORKER)


def label(destinations: Sequence[Destination]) -> str:
    """A chunk's readable name: its destination, or its first one and how many more."""
    text = clean_line(destinations[0].label)
    if len(destinations) > 1:
        text = f"{text} + {len(destinations) - 1} more"
    return text if len(text) <= LABEL_CHARACTERS else text[: LABEL_CHARACTERS - 1] + "…"


def enqueue(
    destinations: Iterable[Destination | str | Mapping[str, Any]],
    *,
    name: str | None = None,
    priority: int = 5,
    use_cache: bool = True,
    budget_usd: float | None = None,
    columns: Sequence[str] = (),
    id_column: str | None = None,
    tier: str = "",
    deadline_at: float | None = None,
    team: str = "",
    are_distinct: bool = False,
    fields: Sequence[str] | None = None,
    settings: Settings | None = None,
    redis: Redis | None = None,
) -> jobs.Job:
    """Enqueue a job and return its handle as soon as all its chunks are published.

    Args:
        destinations: names ("Kyoto, Japan"), mappings with at least `name`, or `Destination`s; any iterable, read once,
            as a stream. Equal ones are asked once (`tasks.identity`).
        name: shown in lists; by default the first destination's.
        priority: 0 to 9; 9 is served first.
        use_cache: False asks the LLM again even where an answer is cached.
        budget_usd: the most that the job's calls may cost; the job pauses before it costs more, see `resume`.
        columns: further columns of the destinations that are sent to the model, as data.
        id_column: the column of `destinations` that tables of the job's results show first.
        tier: at which service tier calls are bought; by default as the workers' settings say.
        deadline_at: when calls of the tier flex become standard ones, in seconds since 1970.
        team: whose budget the calls are paid from too (`teams.budgets`); the job pauses where that is used up.
        are_distinct: `destinations` are `Destination`s, each once, as those of a `Reader`: nothing is compared again.
        fields: of each profile only these (`workers.pipeline.fields`), and nothing else is asked; by default those of
            the settings.
        settings: by default those of the file and the environment.
        redis: a client to use instead of making one.

    Raises:
        InputError: there is no destination.
        ConfigError: a budget that is no amount, a team without one, or one that cannot be kept: a model has no price.
        RedisUnavailableError: Redis cannot be used; the job was not created, or was cancelled.
    """
    settings = settings or load()
    if budget_usd is not None:
        budget.check(budget_usd, settings)
    if team:
        check_team(team, settings)
    url = locate(settings)
    redis = redis or connect(url, socket_timeout_seconds=settings.redis.socket_timeout_seconds)
    check_server(redis)
    # What is said to be distinct is of that type.
    rows: Iterator[Destination] = iter(destinations if are_distinct else from_iterable(destinations))  # type: ignore[arg-type]
    first = next(rows, None)
    if first is None:
        raise InputError("no destinations: there is nothing to enqueue")
    if tier and tier not in TIERS:
        raise InputError(f"tier {tier!r}: expected {', '.join(TIERS)}")
    if priority not in keys.PRIORITIES:
        raise InputError(f"priority {priority}: expected 0 to {keys.PRIORITIES[-1]}")
    tracing.start(settings, "producer")
    with translated(redis), tracing.span("enqueue", "producer", job_name=name or first.label) as span:
        options = JobOptions(
            priority=priority,
            use_cache=use_cache,
            budget_usd=budget_usd,
            columns=tuple(columns),
            id_column=id_column,
            trace=tracing.traceparent(),
            fields=tuple(settings.pipeline.wanted if fields is None else fields),
            tier=tier,
            deadline_at=deadline_at,
            team=team,
        )
        job = _Enqueuing(redis, settings, options).run(chain([first], rows), name or first.label)
        tracing.note(span, job_id=job.job_id, destinations=job.total)
        return job


class _Enqueuing:
    def __init__(self, redis: Redis, settings: Settings, options: JobOptions) -> None:
        self._redis = redis
        self._broker = broker_of(redis, settings)
        self._settings = settings
        self._options = options
        self._compress = settings.performance_optimization.enable_result_compression

    def run(self, rows: Iterator[Destination], name: str) -> jobs.Job:
        job_id = jobs.create(self._redis, name=name, options=self._options, compress=self._compress)
        try:
            with self._alive(job_id):
                total = self._publish_all(job_id, rows)
        except BaseException:
            # Half a job would wait for its other half for ever. What the workers have done of it is cached.
            self._cancel(job_id)
            raise
        return jobs.Job(job_id=job_id, name=name, total=total)

    @contextlib.contextmanager
    def _alive(self, job_id: str) -> Iterator[None]:
        """Within the body, the sweeper knows that more of the job may come, however slowly its input flows."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(keys.PRODUCER_SECONDS / RENEWALS):
                try:
                    self._redis.set(keys.producer(job_id), "1", ex=keys.PRODUCER_SECONDS)
                except RedisError as exc:
                    log.debug("action=producer_unheard job_id=%s %s", job_id, exc)

        thread = threading.Thread(target=renew, name="producer alive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            try:
                # A last sign may have been on its way when the job was sealed.
                self._redis.delete(keys.producer(job_id))
            except RedisError as exc:
                log.debug("action=producer_unheard job_id=%s its sign of life expires by itself: %s", job_id, exc)

    def _cancel(self, job_id: str) -> None:
        try:
            jobs.cancel(self._redis, job_id, compress=self._compress)
            # A user may have cancelled it before: what was written since is left over.
            jobs.drop_work(self._redis, job_id)
        except RedisError as exc:
            log.warning("action=cancel job_id=%s could not be cancelled after a failed enqueue: %s", job_id, exc)

    def _publish_all(self, job_id: str, rows: Iterator[Destination]) -> int:
        pieces = cut(rows, parts=parts_of(self._redis, self._settings), largest=self._settings.work.max_chunk_size)
        total = 0
        batch: list[tuple[Chunk, str]] = []
        waiting = 0
        for number, piece in enumerate(pieces):
            batch.append((Chunk(job_id, f"{number:08d}", piece, queued_at=time.time()), label(piece)))
            waiting += len(piece)
            # The first flush is small: work starts while the rest is still being read.
            if waiting >= min(FLUSH_DESTINATIONS, 50 + total):
                total += self._flush(job_id, batch, waiting)
                batch, waiting = [], 0
        total += self._flush(job_id, batch, waiting)
        self._seal(job_id, total)
        return total

    def _flush(self, job_id: str, batch: list[tuple[Chunk, str]], count: int) -> int:
        if not batch:
            return 0
        if self._redis.hget(keys.job(job_id), "state") == b"cancelled":
            raise JobStoppedError(f"job {job_id} was cancelled while it was being enqueued", job_id=job_id)
        with self._redis.pipeline(transaction=True) as pipeline:
            write_chunks(pipeline, job_id, batch, compress=self._compress)
            pipeline.hincrby(keys.job(job_id), "total", count)
            pipeline.execute()
        publish(self._broker, job_id, [(chunk.chunk_id, text) for chunk, text in batch], self._options.priority)
        return count

    def _seal(self, job_id: str, total: int) -> None:
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(keys.job(job_id), "sealed", 1)
            pipeline.delete(keys.producer(job_id))
            pipeline.xadd(keys.RESULTS, entry_fields(JobSealed(job_id, total), compress=self._compress))
            pipeline.execute()


def broker_of(redis: Redis, settings: Settings) -> Redis:
    """A client of the Redis that holds the Celery queue: `redis`, where no other is set."""
    url = settings.celery.broker_url
    return connect(url, socket_timeout_seconds=settings.redis.socket_timeout_seconds) if url else redis


def publish(
    broker: Redis, job_id: str, labelled: Sequence[tuple[str, str]], priority: int, *, first: bool = False
) -> bool:
    """Send the wake-up calls of some chunks, `(chunk id, label)`; False when their delivery is uncertain.

    With `first` they are served before the others of their priority: work that was begun goes on before more is begun.
    An uncertain delivery is no loss: the chunks stand in the ledger, and the sweeper sends them again.
    """
    step = priority_on_the_wire(priority)
    headers = tracing.headers()
    messages = [chunk_message(job_id, chunk_id, text, step, headers=headers) for chunk_id, text in labelled]
    queue = keys.queue_keys()[step]
    try:
        for start in range(0, len(messages), PUBLISH_BATCH):
            some = messages[start : start + PUBLISH_BATCH]
            # Workers take from the right.
            if first:
                broker.rpush(queue, *reversed(some))
            else:
                broker.lpush(queue, *some)
    except (RedisError, OSError) as exc:
        log.warning(
            "action=publish job_id=%s chunks=%d delivery is uncertain, the sweeper will see to it: %s",
            job_id, len(labelled), exc,
        )  # fmt: skip
        return False
    return True
