"""A job's registry in Redis: create, read, cancel, list.

Counts in it are written by the results consumer after each commit, so they say what is durable.
"""

import functools
import json
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import msgspec
from redis import Redis, ResponseError

from tasks import keys, readings
from tasks import worker_reports as fleet
from tasks.connection import text_of
from tasks.errors import JobNotFoundError, UnreadableError
from tasks.jobs import budget
from tasks.jobs.batches import Batches
from tasks.jobs.batches import of_jobs as batches_of
from tasks.jobs.short_ids import is_whole, the_one
from tasks.messages import Event, EventType, JobClosed, JobOpened, JobOptions
from tasks.storable import entry_fields
from tasks.texts import clean_line
from tasks.waits import Wait

JobState = Literal["queued", "running", "done", "cancelled", "stalled", "unreadable"]
#: States that a job's entry may name.
KNOWN_STATES: Final = frozenset({"queued", "running", "done", "cancelled"})
#: The whole numbers of a job's entry.
COUNTS: Final = (
    "total", "done", "failed", "partial", "llm_calls", "cache_hits", "coalesced", "prompt_tokens", "completion_tokens",
    "cached_tokens", "reasoning_tokens",
)  # fmt: skip
#: States that do not change any more.
FINAL: Final = frozenset({"done", "cancelled"})
#: A running job without progress for this many seconds, on which no live worker is busy, is called stalled.
STALLED_AFTER_SECONDS: Final = 60.0
#: Characters of a job's name that are kept.
MAX_NAME: Final = 200
#: Fields of a status that are left out where they say nothing.
_SELDOM: Final = frozenset({"unreadable", "batches"})
#: A rate older than this many seconds says nothing about now.
RATE_VALID_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class JobStatus:
    """What `themes status --json` prints. Times are seconds since 1970, UTC; None where there is nothing to say."""

    job_id: str
    name: str
    state: JobState
    total: int = 0
    done: int = 0
    failed: int = 0
    partial: int = 0
    llm_calls: int = 0
    cache_hits: int = 0
    coalesced: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: Of the prompt tokens, those that the provider's cache had; of the completion tokens, those of reasoning.
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = None
    rate_per_second: float = 0.0
    eta_seconds: float | None = None
    created_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    #: What the job may cost in US dollars, and what its calls have cost; None without a budget.
    budget_usd: float | None = None
    spent_usd: float | None = None
    #: Whose budget its calls are paid from too; empty: no team's.
    team: str = ""
    #: Why the job is paused: its budget is used up or its team's, a worker's model has no price, the LLM refuses the
    #: account, its endpoint knows no batches, or its user wants it; when it was paused, what was said, and when it goes
    #: on by itself.
    paused: Literal["budget", "team", "price", "account", "batch", "user"] | None = None
    paused_at: float | None = None
    paused_message: str | None = None
    paused_until: float | None = None
    #: What the job waits for, where all of its work does: in words, and as a value.
    waiting_for: str | None = None
    wait: Wait | None = None
    #: What it makes of each profile (`themes`, `price`); empty: everything.
    only_fields: tuple[str, ...] = ()
    #: Why the job's entry in Redis cannot be read; then nothing else of it is known.
    unreadable: str | None = None
    #: Its batches at providers; None where it has none.
    batches: Batches | None = None

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    @property
    def is_settled(self) -> bool:
        """Whether no worker changes it: it has ended, is paused, or cannot be read."""
        return self.is_final or bool(self.paused) or self.state == "unreadable"

    @property
    def succeeded(self) -> bool:
        return self.state == "done" and self.failed == 0

    @property
    def seconds(self) -> float | None:
        """How long the job took; None before its end, and where it ended before anything was begun."""
        if self.started_at is None or self.finished_at is None:
            return None
        return max(0.0, self.finished_at - self.started_at)

    def fields(self) -> dict[str, Any]:
        """By name, in a stable order; `unreadable` and `batches` only where they say something."""
        fields = asdict(self) | {"batches": msgspec.to_builtins(self.batches)}
        return {name: fields[name] for name in fields if name not in _SELDOM or fields[name] is not None}

    def json(self) -> str:
        return json.dumps(self.fields(), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Job:
    """A handle on one enqueued job: `str(job)` is its id."""

    job_id: str
    name: str
    total: int

    def __str__(self) -> str:
        return self.job_id


def new_job_id(now: float | None = None) -> str:
    """Sortable by time, short enough to type: 20261123-142501-7f3a."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    return f"{stamp}-{secrets.token_hex(3)}"


def job_name(text: str) -> str:
    """A job's name as it is kept: one line without control characters, of at most `MAX_NAME` characters."""
    name = clean_line(text)
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


def create(redis: Redis, *, name: str, options: JobOptions, compress: bool) -> str:
    now = time.time()
    job_id, name = new_job_id(now), job_name(name)
    entry = JobOpened(job_id=job_id, name=name, created_at=now, options=options)
    with redis.pipeline(transaction=True) as pipeline:
        fields: dict[Any, Any] = {"job_id": job_id, "name": name, "state": "queued", "created_at": now}
        fields |= {"total": 0, "sealed": 0, "options": msgspec.json.encode(options)}
        pipeline.hset(keys.job(job_id), mapping=fields)
        pipeline.set(keys.producer(job_id), "1", ex=keys.PRODUCER_SECONDS)
        if options.has_budget:
            pipeline.hset(keys.budget(job_id), mapping=budget.fields_of(options) | {budget.SPENT: 0})
        pipeline.zadd(keys.JOBS, {job_id: now})
        pipeline.sadd(keys.ACTIVE, job_id)
        pipeline.xadd(keys.RESULTS, entry_fields(entry, compress=compress))
        pipeline.execute()
    return job_id


def status(redis: Redis, job_id: str) -> JobStatus:
    """Read a job's status.

    Raises:
        JobNotFoundError: Redis knows no such job.
        UnreadableError: what Redis holds of it cannot be read.
    """
    ((raw, more),) = entries(redis, [job_id])
    known = known_status(job_id, raw, now=time.time(), **more)
    return known if known.is_settled else among_workers(known, fleet.workers(redis).values())


def among_workers(known: JobStatus, reports: Collection[fleet.WorkerReport]) -> JobStatus:
    """The status of a job by what the workers do: none is stalled while one is busy, and all may wait for one thing."""
    if known.is_settled:
        return known
    bought = known.batches if reports else None
    if known.state == "stalled" and (any(one.chunks_held for one in reports) or (bought and bought.is_active)):
        # Slow is not stalled: a model may take minutes for one destination, and a batch hours.
        known = replace(known, state="running")
    waits = [one.waiting_for for one in reports if one.chunks_claimed or one.chunks_held]
    if waits and all(waits):
        return waiting(known, waits[0])
    # While destinations come to an end, or workers make questions for the first batch, not everything waits.
    waits_for_batch = bought and not known.rate_per_second and (bought.under_way or not waits)
    return waiting(known, bought.wait if bought and waits_for_batch else None)


def waiting(known: JobStatus, wait: Wait | None) -> JobStatus:
    """The status of a job whose work all waits for one thing."""
    return replace(known, waiting_for=wait.format() if wait else None, wait=wait) if wait or known.wait else known


def entries(redis: Redis, job_ids: Sequence[str]) -> list[tuple[Any, dict[str, Any]]]:
    """The entry of each job as Redis replies, and more of it: its budget, as Redis replies, and its batches.

    A key of another type is an error in its place.
    """
    hashes = [key for job_id in job_ids for key in (keys.job(job_id), keys.budget(job_id))]
    replies = readings.replies_of(redis, hashes)
    found = zip(replies[::2], replies[1::2], batches_of(redis, job_ids), strict=True)
    return [(raw, {"money": money, "bought": bought}) for raw, money, bought in found]


def known_status(job_id: str, raw: Any, *, now: float, money: Any = None, bought: Batches | None = None) -> JobStatus:
    """A job's status from its entry and its budget as Redis replies, and the batches that it `bought`.

    Raises:
        JobNotFoundError: there is none.
        UnreadableError: it cannot be read.
    """
    if not raw and not isinstance(raw, ResponseError):
        raise JobNotFoundError(f"no job {job_id!r} in this Redis; `themes status` lists the jobs")
    try:
        fields = readings.texts(raw)
        amounts = budget.state_of(readings.texts(money)) if money else None
        return status_of(job_id, fields, now=now, money=amounts, bought=bought)
    except UnreadableError as exc:
        raise UnreadableError(
            f"job {job_id} cannot be read ({exc}): put {keys.job(job_id)} or {keys.budget(job_id)} in Redis right, or "
            "delete it: the results are in the database"
        ) from exc


def listed_status(job_id: str, raw: Any, *, now: float, **more: Any) -> JobStatus:
    """As `known_status`; of a job that cannot be read, a status that says why. Raises JobNotFoundError."""
    try:
        return known_status(job_id, raw, now=now, **more)
    except UnreadableError as exc:
        name = readings.texts(raw).get("name", "") if isinstance(raw, Mapping) else ""
        return JobStatus(job_id, clean_line(name), "unreadable", unreadable=str(exc.__cause__ or exc))


def options_of(raw: bytes | str | None) -> JobOptions:
    """A job's options as its entry has them. Raises UnreadableError: they are none of ours."""
    try:
        return msgspec.json.decode(raw, type=JobOptions) if raw else JobOptions()
    except (msgspec.MsgspecError, UnicodeError) as exc:
        raise UnreadableError(f"options: {exc}") from exc


def status_of(
    job_id: str,
    fields: Mapping[str, str],
    *,
    now: float,
    money: budget.BudgetState | None = None,
    bought: Batches | None = None,
) -> JobStatus:
    """A job's status from its entry's fields, its budget and its batches. `now` is in seconds since 1970.

    Raises:
        UnreadableError: a field that must be there is missing, or is not what it should be.
    """
    moment = functools.partial(readings.number, fields)
    counts = {name: readings.whole(fields, name) for name in COUNTS}

    state = fields.get("state", "")
    if state not in KNOWN_STATES:
        raise UnreadableError(f"state is {readings.shown(state)}, expected one of {', '.join(sorted(KNOWN_STATES))}")
    options = options_of(fields.get("options"))
    started, finished = moment("started_at"), moment("finished_at")
    total, ended = counts["total"], counts["done"] + counts["failed"]
    rate, rate_at = moment("rate_per_second") or 0.0, moment("rate_at")
    if now - (rate_at or 0.0) > RATE_VALID_SECONDS:
        rate = 0.0
    if finished and started:
        rate = ended / max(finished - started, 0.001)
    progress_at = rate_at or started
    if state == "running" and progress_at is not None and now - progress_at > STALLED_AFTER_SECONDS:
        state = "stalled"
    paused = fields.get("paused") if state not in FINAL else None
    if paused:
        state = "stalled"
    running = state == "running" and rate > 0
    return JobStatus(
        job_id=job_id,
        name=clean_line(fields.get("name", "")),
        state=state,  # type: ignore[arg-type]  # written by us, from the same list
        **counts,  # type: ignore[arg-type]  # whole numbers all
        cost_usd=moment("cost_usd") if "cost_usd" in fields else 0.0,
        rate_per_second=round(rate, 3),
        eta_seconds=round((total - ended) / rate, 1) if running else None,
        created_at=moment("created_at") or 0.0,
        started_at=started,
        finished_at=finished,
        budget_usd=money.limit_usd if money else None,
        spent_usd=_spent(money, is_paused=bool(paused)) if money else None,
        paused=paused,  # type: ignore[arg-type]  # as the state
        paused_at=moment("paused_at") if paused else None,
        paused_message=fields.get("paused_message") if paused else None,
        paused_until=moment("paused_until") if paused else None,
        team=options.team,
        only_fields=options.fields,
        batches=bought.beside(money) if bought else None,
    )


def _spent(money: budget.BudgetState, *, is_paused: bool) -> float:
    """What a budget has spent; of a paused job also what is reserved: little of it will be released."""
    return round(money.spent_usd + (money.reserved_usd if is_paused else 0), 9)


def list_jobs(redis: Redis, *, limit: int = 50) -> Iterator[JobStatus]:
    """The newest jobs first; one that cannot be read says so, and the others are as they are."""
    members: list[Any] = redis.zrevrange(keys.JOBS, 0, limit - 1)
    job_ids = [text_of(member) for member in members]
    reports = fleet.workers(redis).values()
    for member, job_id, (raw, more) in zip(members, job_ids, entries(redis, job_ids), strict=True):
        try:
            yield among_workers(listed_status(job_id, raw, now=time.time(), **more), reports)
        except JobNotFoundError:
            # Its entry has reached the end of its life: the list follows.
            redis.zrem(keys.JOBS, member)


def whole_id(redis: Redis, text: str) -> str:
    """The id of the job that a short id means; the text itself where it means none that Redis knows."""
    if is_whole(text):
        return text
    members: list[Any] = redis.zrange(keys.JOBS, 0, -1)
    return the_one(text, map(text_of, members)) or text


def latest(redis: Redis) -> str | None:
    newest = redis.zrevrange(keys.JOBS, 0, 0)
    return text_of(newest[0]) if newest else None


def cancel(redis: Redis, job_id: str, *, compress: bool = True) -> JobStatus:
    """Stop a job: nothing of it is asked any more; what is done stays, what is under way is cached.

    Raises:
        JobNotFoundError: Redis knows no such job.
    """
    before = status(redis, job_id)
    if before.is_final:
        return before
    now = time.time()
    with redis.pipeline(transaction=True) as pipeline:
        pipeline.hset(keys.job(job_id), mapping={"state": "cancelled", "finished_at": now})
        pipeline.srem(keys.ACTIVE, job_id)
        pipeline.xadd(keys.RESULTS, entry_fields(JobClosed(job_id, "cancelled", now), compress=compress))
        pipeline.expire(keys.job(job_id), keys.KEEP_SECONDS)
        pipeline.expire(keys.budget(job_id), keys.KEEP_SECONDS)
        pipeline.execute()
    redis.publish(keys.CONTROL, job_id)
    drop_work(redis, job_id)
    return status(redis, job_id)


def drop_work(redis: Redis, job_id: str) -> None:
    """Delete what is left to do of a cancelled job."""
    # One set for each chunk that a worker has begun: few, and named after chunks that are still in the ledger.
    begun: list[Any] = redis.hkeys(keys.deliveries(job_id))
    work = keys.chunks, keys.labels, keys.leases, keys.owners, keys.deliveries, keys.producer
    finished = [keys.finished(job_id, text_of(chunk_id)) for chunk_id in begun]
    redis.delete(*(key_of(job_id) for key_of in work), *finished)


def last_event(known: JobStatus) -> Event:
    """The `job.done` or `job.paused` of a job whose events are not, or no longer, on a stream."""
    data = {key: value for key, value in known.fields().items() if key not in {"job_id", "name"}}
    kind: EventType = "job.done" if known.is_final else "job.paused"
    at = known.finished_at if known.is_final else known.paused_at
    return Event(type=kind, job_id=known.job_id, at=at or time.time(), data=data)
