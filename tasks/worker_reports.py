"""Reports of the live processes: a hash that expires for each, and a set of their names.

The set spares a walk over every key of a cache of millions.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, Self, TypeVar

import msgspec
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from tasks import keys, readings
from tasks.connection import text_of
from tasks.errors import UnreadableError
from tasks.texts import duration
from tasks.waits import Wait

#: What is read of a report to find idle lanes.
LANES: Final = ("lanes", "lanes_busy", "lanes_waiting")
#: Seconds after which the name of a process without a report is removed: long enough for a short outage of Redis.
FORGET_SECONDS: Final = 3_600.0


class RouteReport(msgspec.Struct, frozen=True):
    """One model at one endpoint, as a worker's pool sees it."""

    model: str | None = None
    circuit: str | None = None
    error: str | None = None
    in_use: float = 0
    queued: float = 0
    limit: float = 0
    failures: float = 0
    cool_downs: float = 0
    cooling_seconds: float = 0
    cooling_for: str | None = None
    latency_ms: float | None = None
    limit_digest: str | None = None


class PoolReport(msgspec.Struct, frozen=True):
    idle: float = 0
    wait_p95_ms: float | None = None
    routes: dict[str, RouteReport] = {}


class LatelyReport(msgspec.Struct, frozen=True):
    """Means of the last seconds: prompts that are asked, those in each line before that, and busy lanes."""

    lanes_busy: float = 0
    connections_in_use: float = 0
    connections_waiting: float = 0
    rate_waiting: float = 0


class SpanReport(msgspec.Struct, frozen=True):
    count: int
    total_seconds: float


class ProcessReport(msgspec.Struct, frozen=True):
    cpu_percent: float | None = None
    rss_bytes: float | None = None


class ProfileReport(msgspec.Struct, frozen=True):
    """What the profiler has measured; `process` is None where it is off."""

    process: ProcessReport | None = None
    spans: dict[str, SpanReport] = {}


class SettingReport(msgspec.Struct, frozen=True):
    origin: str
    value: Any


class _Report(msgspec.Struct, frozen=True):
    pid: int = 0
    #: Seconds since 1970.
    at: float = 0.0
    started_at: float = 0.0
    #: Which fields cannot be read, and why; these have their defaults.
    unreadable: str = ""

    @classmethod
    def decode(cls, reply: Any) -> Self:
        """A report as Redis replies: every number in it is finite and from 0 on."""
        try:
            texts = readings.texts(reply)
        except UnreadableError as exc:
            return cls(unreadable=str(exc))
        values: dict[str, Any] = {}
        flaws: list[str] = []
        for field in msgspec.structs.fields(cls):
            if texts.get(field.name):
                try:
                    values[field.name] = _value(texts, field)
                except UnreadableError as exc:
                    flaws.append(str(exc))
        return cls(**values | ({"unreadable": "; ".join(sorted(flaws))} if flaws else {}))


def _value(texts: dict[str, str], field: msgspec.structs.FieldInfo) -> Any:
    text = texts[field.name]
    if field.type is str:
        return text
    if field.type in {int, float, int | None}:
        number = readings.number(texts, field.name)
        return number if field.type is float else int(number or 0)
    if field.type == Wait | None:
        return Wait.decode(text)
    try:
        return msgspec.json.decode(text, type=field.type)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise UnreadableError(f"{field.name}: {exc}") from exc


class WorkerReport(_Report, frozen=True):
    """The heartbeat of one worker process. Memory is in MiB, None where it is not watched."""

    name: str = ""
    host: str = ""
    lanes: int = 0
    lanes_busy: int = 0
    lanes_waiting: int = 0
    lanes_wanted: int = 0
    chunks_held: int = 0
    chunks_claimed: int = 0
    restarts: int = 0
    wedged: int = 0
    waiting_for: Wait | None = None
    connections: int = 0
    connections_in_use: int = 0
    connections_waiting: int = 0
    #: Why the call journal is not written; empty while it is.
    journal_off: str = ""
    cache: str = ""
    cache_outages: int = 0
    cache_away_seconds: float = 0.0
    executed: int = 0
    stolen: int = 0
    shared: int = 0
    yielded: int = 0
    #: Part of the lanes' life that they were busy, 0-1.
    busy_share: float = 0.0
    idle_seconds: float = 0.0
    #: `Lanes.statistics` of each lane.
    lane_statistics: list[dict[str, float]] = []
    memory_mb: int | None = None
    memory_threshold_mb: int = 0
    memory_cache_mb: int = 0
    memory_pressure: str = "none"
    lately: LatelyReport = LatelyReport()
    pool: PoolReport = PoolReport()
    profile: ProfileReport = ProfileReport()
    settings: dict[str, SettingReport] = {}

    @property
    def usage(self) -> ProcessReport:
        return self.profile.process or ProcessReport()

    @property
    def says(self) -> str:
        """What is wrong with it; empty where nothing is."""
        if self.waiting_for:
            return self.waiting_for.format()
        if self.unreadable:
            return self.unreadable
        if self.journal_off:
            return f"call journal off: {self.journal_off}"
        age = time.time() - self.at
        if age > keys.WORKER_SECONDS / 2:
            return f"silent for {duration(age)}"
        return "" if self.lanes else "stopping"

    def encode(self) -> dict[str, str | int | float | bytes]:
        """The fields of the hash but those in JSON: their sources write more than is read here."""
        left_out = {"lane_statistics", "lately", "pool", "profile", "settings", "unreadable", "waiting_for"}
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name not in left_out}
        wait = self.waiting_for.encode() if self.waiting_for else b""
        return {name: value for name, value in fields.items() if value is not None} | {"waiting_for": wait}


class ConsumerReport(_Report, frozen=True):
    """What one results consumer does. Counts are since its start."""

    #: Entries of the results stream that are not written yet.
    lag: int = 0
    entries: int = 0
    results: int = 0
    rejected: int = 0
    entries_per_second: float = 0.0
    rows: int = 0
    batches: int = 0
    last_batch: int = 0
    ms_per_batch: float = 0.0
    database: str = ""
    #: Statement -> its times, see `StatementTimes.as_dict`.
    statements: dict[str, dict[str, float]] = {}

    def encode(self) -> dict[Any, Any]:
        fields = msgspec.structs.asdict(self) | {"statements": msgspec.json.encode(self.statements)}
        del fields["unreadable"]
        return fields


R = TypeVar("R", bound=_Report)


@dataclass(frozen=True, slots=True)
class Role(Generic[R]):
    """A kind of process that reports: the set of their names, the key of each, what it reports."""

    names: str
    key_of: Callable[[str], str]
    type: type[R]


WORKER: Final = Role(keys.WORKERS, keys.worker, WorkerReport)
CONSUMER: Final = Role(keys.CONSUMERS, keys.consumer, ConsumerReport)


async def write_report(redis: AsyncRedis, role: Role[Any], name: str, fields: dict[Any, Any]) -> None:
    """Replace the report of a process. Names of processes that were killed are removed."""
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.hset(role.key_of(name), mapping=fields)
        pipeline.expire(role.key_of(name), keys.WORKER_SECONDS)
        pipeline.zadd(role.names, {name: time.time()})
        pipeline.zremrangebyscore(role.names, "-inf", time.time() - FORGET_SECONDS)
        pipeline.expire(role.names, keys.KEEP_SECONDS)
        await pipeline.execute()


async def remove_report(redis: AsyncRedis, role: Role[Any], name: str) -> None:
    async with redis.pipeline(transaction=True) as pipeline:
        pipeline.delete(role.key_of(name))
        pipeline.zrem(role.names, name)
        await pipeline.execute()


def read_reports(redis: Redis, role: Role[R]) -> dict[str, R]:
    """The reports of the live processes by name, in the names' order."""
    names = sorted(text_of(name) for name in redis.zrange(role.names, 0, -1))
    replies = readings.replies_of(redis, map(role.key_of, names))
    return {name: role.type.decode(reply) for name, reply in zip(names, replies, strict=True) if reply}


def consumers(redis: Redis) -> dict[str, ConsumerReport]:
    return read_reports(redis, CONSUMER)


def workers(redis: Redis) -> dict[str, WorkerReport]:
    return read_reports(redis, WORKER)


def endpoint_digests(redis: Redis) -> set[str]:
    """The endpoints that the live workers ask, each with its model, as digests."""
    routes = [route for report in workers(redis).values() for route in report.pool.routes.values()]
    return {route.limit_digest for route in routes if route.limit_digest}


async def idle_lanes(redis: AsyncRedis, *, besides: str) -> int:
    """Lanes of other workers that have nothing to do and nothing to come."""
    names = [text_of(name) for name in await redis.zrange(keys.WORKERS, 0, -1)]
    async with redis.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.hgetall(keys.worker(name))
        replies = await pipeline.execute(raise_on_error=False)
    found = {name: readings.amounts(reply, LANES) for name, reply in zip(names, replies, strict=True)}
    return sum(
        max(0, int(report["lanes"] - report.get("lanes_busy", 0)))
        for name, report in found.items()
        if name != besides and "lanes" in report and not report.get("lanes_waiting")
    )


def live_lanes(redis: Redis) -> int:
    return sum(report.lanes for report in workers(redis).values())
