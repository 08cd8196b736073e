"""Questions and batches in Redis, for all workers of a fleet. Each step is one script.

| key | type | what | lifetime |
|---|---|---|---|
| themes:batches:keeper | string | token of the process that keeps the batches | its lease, renewed |
| themes:batches:jobs | set | jobs with questions or batches without an end | - |
| themes:batches:open | string | how many questions have no end | - |
| themes:batches:woken | list | "job chunk" whose message is to be sent | emptied by the keeper |
| themes:batch:form:DIGEST | string | what the prompts of one version share | FORM_SECONDS after it was asked last |
| themes:batch:question:KEY | hash | its text, job, shelf, payer, tries, the tag of its batch | until its end |
| themes:batch:waiters:KEY | set | "job chunk" that wait for it | until its end |
| themes:batch:answer:KEY | string | its raw answer; empty: none came; =: the cache has it | until it is in the cache |
| themes:job:ID:parked:CHUNK | set | questions that a chunk waits for | emptied by their ends |
| themes:job:ID:batches:waiting:SHELF | list | questions that wait for a batch | emptied by the keeper |
| themes:job:ID:batches:lines:TAG | hash | lines without an end: what each can cost, who pays | emptied by their ends |
| themes:job:ID:batches:partly:TAG | set | "job chunk" of which some questions go into another batch | until its end |
| themes:job:ID:batches:bills:TAG | hash | bills of a batch that are not booked, by payer | emptied by the keeper |
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
from redis import ResponseError
from redis.asyncio import Redis

from tasks import keys
from tasks.connection import text_of
from tasks.errors import UnreadableError
from tasks.frames import packed
from tasks.jobs.batches import Batch, read
from tasks.jobs.registry import FINAL, options_of
from tasks.lua import lua
from tasks.messages import pack, unpack
from tasks.storable import entry_fields
from workers.llm.batches.bills import spent_of
from workers.llm.batches.questions import (
    FORM_AGAIN_SECONDS,
    FORM_SECONDS,
    LATE_SECONDS,
    SLICE,
    Ask,
    Ending,
    Form,
    JobState,
    Kept,
    LeaseLostError,
    Line,
    Settled,
    Taken,
    answer_of,
)
from workers.llm.cache.completions import translated
from workers.llm.funds import FUNDS, Refused, Standing

log = logging.getLogger("themes.batches")

#: Milliseconds that Redis may take to have its append-only file on the disk.
DURABLE_MS: Final = 3_000
#: Messages that are sent in one step.
WAKE_AT_ONCE: Final = 1_000

#: Sends chunks' wake-up calls: `(job id, (chunk id, label) pairs, priority)`.
Wake = Callable[[str, list[tuple[str, str]], int], Awaitable[None]]


class RedisBatchStore:
    """See `workers.llm.batches.questions.BatchStore`. `wake` sends messages for chunks."""

    def __init__(
        self,
        redis: Redis,
        *,
        wake: Wake,
        lease_seconds: float,
        dead_after_seconds: float,
        limits: bytes = b"{}",
        compress: bool = True,
    ) -> None:
        self._redis = redis
        self._wake = wake
        self._lease_seconds = lease_seconds
        self._silent_ms = int(dead_after_seconds * 1000)
        self._limits = limits
        self._compress = compress
        self.token = uuid.uuid4().hex[:12]
        self._held_until = 0.0
        #: Jobs whose entry cannot be read, and was logged.
        self._unreadable: set[str] = set()
        #: When this process wrote each form.
        self._written: dict[str, float] = {}
        ended = lua(__file__, "ended")
        self._ask, self._save, self._book, self._keep, self._rest, self._hold = (
            redis.register_script(lua(__file__, name)) for name in ("ask", "save", "book", "keep", "rest", "hold")
        )
        self._take = redis.register_script(FUNDS + lua(__file__, "take"))
        self._discard = redis.register_script(ended + lua(__file__, "discard"))
        self._settle, self._close = (
            redis.register_script(FUNDS + ended + lua(__file__, name)) for name in ("settle", "close")
        )

    def __repr__(self) -> str:
        return f"<RedisBatchStore {self.token}>"

    @property
    def is_held(self) -> bool:
        """Whether this process keeps the batches, as far as its own clock knows."""
        return time.monotonic() < self._held_until

    async def ask(self, asks: Sequence[Ask], forms: Sequence[Form], *, most: int) -> list[bytes | None]:
        async with translated():
            return await self._asked(asks, forms, most)

    async def _asked(self, asks: Sequence[Ask], forms: Sequence[Form], most: int) -> list[bytes | None]:
        await self._write(forms)
        job_id, chunk_id = asks[0].job_id, asks[0].chunk_id
        described: list[str | bytes | int] = []
        for one in asks:
            cached = keys.cache(one.cache_key) if one.cache_key else ""
            packed_question, asked = msgspec.msgpack.encode(one.question), one.question
            described += [one.key, cached, one.shelf, packed_question, asked.worst_nano, asked.size_bytes]
            described += [one.payer, int(one.is_late)]
        places = [keys.parked(job_id, chunk_id), keys.batch_shelves(job_id), keys.BATCH_JOBS, keys.BATCHES_OPEN]
        found: Any = await self._ask(keys=places, args=[job_id, chunk_id, most, *described])
        return [answer_of(each[0]) if each else None for each in found]

    async def _write(self, forms: Sequence[Form]) -> None:
        now = time.monotonic()
        new = [one for one in forms if self._written.get(one.digest, -FORM_AGAIN_SECONDS) + FORM_AGAIN_SECONDS <= now]
        if not new:
            return
        async with self._redis.pipeline(transaction=False) as pipeline:
            for one in new:
                pipeline.set(keys.batch_form(one.digest), pack(one), ex=FORM_SECONDS)
            await pipeline.execute()
        self._written |= {one.digest: now for one in new}

    async def keep(self, some: Sequence[Kept], *, ttl_ms: int) -> None:
        places = [place for one in some for place in (keys.cache(one.cache_key), keys.batch_answer(one.key))]
        async with translated():
            await self._keep(keys=places, args=[ttl_ms, *(part for one in some for part in (one.stored, one.mark))])

    async def hold(self) -> bool:
        asked = time.monotonic()
        held = await self._hold(keys=[keys.BATCH_KEEPER], args=[self.token, int(self._lease_seconds * 1000), ""])
        self._held_until = asked + self._lease_seconds if held else 0.0
        return bool(held)

    async def release(self, *, for_seconds: float = 0.0) -> bool:
        self._held_until = 0.0
        await self._hold(keys=[keys.BATCH_KEEPER], args=[self.token, int(for_seconds * 1000), "-"])
        return True

    async def jobs(self) -> list[JobState]:
        found = []
        for member in await self._redis.smembers(keys.BATCH_JOBS):
            job_id = text_of(member)
            try:
                state = await self._job(job_id)
            except (UnreadableError, ResponseError, ValueError) as exc:
                self._pass_over(job_id, exc)
                continue
            if state.shelves or any(one.state != "ended" for one in state.batches):
                found.append(state)
            else:
                await self._rest(keys=[keys.BATCH_JOBS, keys.batch_shelves(state.job_id)], args=[state.job_id])
        return found

    def _pass_over(self, job_id: str, error: object) -> None:
        """Say once that a job's batches wait, because something of it is not ours."""
        if job_id not in self._unreadable:
            self._unreadable.add(job_id)
            log.error("action=job_unreadable job_id=%s its batches wait, the others go on: %s", job_id, error)

    async def _job(self, job_id: str) -> JobState:
        async with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hmget(keys.job(job_id), "state", "paused", "options")
            pipeline.hgetall(keys.batches(job_id))
            pipeline.hgetall(keys.batch_shelves(job_id))
            (state, paused, options), batches, shelves = await pipeline.execute()
        is_over = state is None or text_of(state) in FINAL
        known = read(batches)
        if len(known) < len(batches):
            self._pass_over(job_id, f"{len(batches) - len(known)} of its batches cannot be read")
        return JobState(
            job_id=job_id,
            batches=known,
            shelves={text_of(shelf): int(count) for shelf, count in shelves.items()},
            is_over=is_over,
            is_paused=bool(paused),
            deadline_at=options_of(options).deadline_at,
        )

    async def take(self, batch: Batch, shelf: str, most: int, most_bytes: int) -> Taken:
        job_id, tag = batch.job_id, batch.tag
        count, *found = await self._take(
            keys=[
                keys.BATCH_KEEPER, keys.batch_waiting(job_id, shelf), keys.batch_lines(job_id, tag),
                keys.batch_shelves(job_id), keys.budget(job_id), keys.batches(job_id), keys.BATCH_JOBS,
            ],
            args=[
                self.token, shelf, tag, most, most_bytes, self._silent_ms, job_id, msgspec.json.encode(batch),
                self._limits,
            ],
        )  # fmt: skip
        if count < 0:
            raise LeaseLostError
        why, nano, raw, *standing = found
        taken = Taken(msgspec.json.decode(raw, type=Batch), int(count), "full" if why == b"full" else "")
        if why in {b"", b"full"}:
            return taken
        if not why:
            return msgspec.structs.replace(taken, stopped="waits")
        return msgspec.structs.replace(taken, stopped="refused", refused=Refused(why, Standing.of(standing), nano))

    async def save(self, batch: Batch, *, durable: bool = False) -> None:
        if not self.is_held:
            raise LeaseLostError
        async with self._redis.pipeline(transaction=False) as pipeline:
            await self._save(
                keys=[keys.BATCH_KEEPER, keys.batches(batch.job_id), keys.BATCH_JOBS],
                args=[self.token, batch.job_id, batch.tag, msgspec.json.encode(batch)],
                client=pipeline,
            )
            if durable:
                # On this connection: it waits for what was written on it, and so for all before that. A server that
                # keeps no append-only file, or is older than 7.2, refuses.
                pipeline.execute_command("WAITAOF", 1, 0, DURABLE_MS)
            saved, *_ = await pipeline.execute(raise_on_error=False)
        if isinstance(saved, Exception):
            raise saved
        if not saved:
            raise LeaseLostError

    async def lines(self, batch: Batch) -> AsyncIterator[list[Line]]:
        async for found in self._pages(keys.batch_lines(batch.job_id, batch.tag)):
            yield await self._lines({text_of(key): text_of(line) for key, line in found.items()})

    async def _pages(self, place: str) -> AsyncIterator[dict[Any, Any]]:
        """The fields of a hash; a field that is deleted meanwhile may be among them."""
        cursor = 0
        while True:
            found: Any
            cursor, found = await self._redis.hscan(place, cursor, count=SLICE)
            if found:
                yield found
            if not cursor:
                return

    async def find(self, batch: Batch, wanted: Sequence[str]) -> list[Line]:
        found = await self._redis.hmget(keys.batch_lines(batch.job_id, batch.tag), wanted)
        return await self._lines({key: text_of(line) for key, line in zip(wanted, found, strict=True) if line})

    async def _lines(self, described: dict[str, str]) -> list[Line]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key in described:
                pipeline.hmget(keys.batch_question(key), "question", "tries")
            questions = await pipeline.execute()
        return [_line(key, line, *one) for (key, line), one in zip(described.items(), questions, strict=True)]

    async def forms(self, digests: Sequence[str]) -> dict[str, Form]:
        found: Any = await self._redis.mget([keys.batch_form(digest) for digest in digests])
        return {digest: unpack(raw, Form) for digest, raw in zip(digests, found, strict=True) if raw}

    async def settle(self, batch: Batch, ends: Sequence[Settled]) -> Batch:
        job_id, described = batch.job_id, list[str | bytes | int]()
        for one in ends:
            saved = "" if one.saved_usd is None else repr(one.saved_usd)
            answer = packed(one.answer, compress=self._compress) if one.answer else b""
            described += [one.key, one.end, answer, one.cost_nano, one.bill, saved]
        raw = await self._settle(
            keys=[
                keys.batch_lines(job_id, batch.tag), keys.batches(job_id), keys.batch_shelves(job_id),
                keys.budget(job_id), keys.batch_bills(job_id, batch.tag), keys.BATCHES_OPEN, keys.BATCHES_WOKEN,
                keys.batch_partly(job_id, batch.tag),
            ],
            args=[job_id, batch.tag, keys.KEEP_SECONDS * 1000, LATE_SECONDS * 1000, *described],
        )  # fmt: skip
        return msgspec.json.decode(raw, type=Batch)

    async def discard(self, job_id: str, shelf: str, *, end: Ending) -> int:
        left = await self._discard(
            keys=[
                keys.batch_waiting(job_id, shelf), keys.batch_shelves(job_id), keys.BATCHES_OPEN, keys.BATCHES_WOKEN,
            ],
            args=[shelf, end, LATE_SECONDS * 1000, SLICE],
        )  # fmt: skip
        return int(left)

    async def book(self, batch: Batch) -> None:
        place = keys.batch_bills(batch.job_id, batch.tag)
        async for found in self._pages(place):
            described: list[str | bytes] = []
            for payer, bills in found.items():
                spent = spent_of(batch, text_of(payer), bills, at=time.time())
                described += [payer, entry_fields(spent, compress=self._compress)["b"]]
            await self._book(keys=[place, keys.RESULTS], args=described)

    async def close(self, batch: Batch) -> None:
        job_id, tag = batch.job_id, batch.tag
        is_ours = self.is_held and await self._close(
            keys=[
                keys.BATCH_KEEPER, keys.batches(job_id), keys.budget(job_id), keys.batch_lines(job_id, tag),
                keys.batch_bills(job_id, tag), keys.batch_partly(job_id, tag), keys.BATCHES_WOKEN,
            ],
            args=[self.token, tag, msgspec.json.encode(batch), job_id],
        )  # fmt: skip
        if not is_ours:
            raise LeaseLostError
        # The consumer copies what is known of the job's batches into the database.
        await self._redis.zadd(keys.MEASUREMENTS_DUE, {job_id: time.time()})

    async def wake(self) -> None:
        while members := await self._redis.lrange(keys.BATCHES_WOKEN, 0, WAKE_AT_ONCE - 1):
            by_job: dict[str, list[str]] = {}
            for member in members:
                job_id, _, chunk_id = text_of(member).partition(" ")
                by_job.setdefault(job_id, []).append(chunk_id)
            await asyncio.gather(*(self._wake_chunks(job_id, chunk_ids) for job_id, chunk_ids in by_job.items()))
            # Sent first: should this process die here, the messages are sent once more, and find nothing to do.
            await self._redis.ltrim(keys.BATCHES_WOKEN, len(members), -1)

    async def _wake_chunks(self, job_id: str, chunk_ids: list[str]) -> None:
        """Send for workers for chunks; those of a job that cannot be read are passed over, as workers do."""
        try:
            priority, labelled = await self._labelled(job_id, chunk_ids)
        except (UnreadableError, ResponseError) as exc:
            self._pass_over(job_id, exc)
            return
        await self._wake(job_id, labelled, priority)

    async def _labelled(self, job_id: str, chunk_ids: list[str]) -> tuple[int, list[tuple[str, str]]]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hget(keys.job(job_id), "options")
            pipeline.hmget(keys.labels(job_id), chunk_ids)
            options, labels = await pipeline.execute()
        labelled = [
            (chunk_id, text_of(label) if label else chunk_id) for chunk_id, label in zip(chunk_ids, labels, strict=True)
        ]
        return options_of(options).priority, labelled


def _line(key: str, described: str, packed: bytes | None, tries: bytes | None) -> Line:
    _, _, payer = described.partition(" ")
    return Line.of(key, payer, packed, int(tries or 0))
