"""Who looks after batches: forms them, and sees each through to its end. One process of a fleet at a time.

A process that takes over goes on from what is written down (`workers.llm.batches.course`).
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec.structs import replace
from redis import RedisError

from config.settings import Settings
from tasks.errors import JobPausedError, ThemesError
from tasks.jobs.batches import Batch
from workers.llm.batches.course import WANTED, Course, Stops
from workers.llm.batches.questions import BatchStore, Ending, JobState, LeaseLostError, split_shelf
from workers.llm.cache.memory import MIB
from workers.process.outage import Outage
from workers.process.retry import wait_at_most
from workers.process.shutdown import end_tasks

log = logging.getLogger("themes.batches")

#: Seconds between two looks of the keeper, and where there is nothing to look after.
LOOK_SECONDS, IDLE_SECONDS = 0.5, 2.0
#: Looks of a process that would be it, in the time of the keeper's lease.
LOOKS_PER_LEASE: Final = 3
#: A process keeps batches at most so many leases while there are some that only others can see to.
LEASES_IN_TURN: Final = 10
#: A shelf waits at most so many times `llm.batch_form_seconds` while questions keep coming.
FORM_AT_MOST: Final = 6
#: Questions that move into a batch in one step.
TAKE_AT_ONCE: Final = 500

#: Pauses a job.
Pause = Callable[[JobPausedError], Awaitable[bool]]
#: The course of a batch at its endpoint; None where this process has no such endpoint.
CourseOf = Callable[[Batch], Course | None]


class _Shelf:
    """Questions that wait: how many there were at the last look, and since when (monotonic seconds)."""

    def __init__(self) -> None:
        self.count = 0
        self.since = self.changed = time.monotonic()

    def seen(self, count: int, now: float) -> None:
        if count != self.count:
            self.count, self.changed = count, now

    def is_due(self, settings: Settings, now: float) -> bool:
        wait = settings.llm.batch_form_seconds
        is_quiet = now - self.changed >= wait or now - self.since >= FORM_AT_MOST * wait
        return is_quiet or self.count >= settings.llm.batch_max_requests


class BatchKeeper:
    """Looks after the batches of a store; another process stands by to do so."""

    def __init__(self, store: BatchStore, course_of: CourseOf, settings: Settings, *, pause: Pause) -> None:
        self._store = store
        self._course_of = course_of
        self._settings = settings
        self._pause = pause
        self._shelves: dict[tuple[str, str], _Shelf] = {}
        self._courses: dict[str, asyncio.Task[None]] = {}
        self._stops: dict[str, Stops] = {}
        self._is_keeper = False
        self._outage = Outage(
            log,
            lost="action=batches_wait batches cannot be looked after now: %s",
            back="action=batches_kept batches are looked after again",
        )
        #: When its turn began, and how many shelves and batches are for it, or for others alone.
        self._since = 0.0
        self._own = self._others = 0
        #: Set when the course of a batch has ended, or is to be taken up again.
        self._news = asyncio.Event()

    def __repr__(self) -> str:
        return f"<BatchKeeper {'keeps' if self._is_keeper else 'stands by'} batches={len(self._courses)}>"

    async def run(self) -> None:
        """Keep the batches, or stand by, until cancelled."""
        try:
            while True:
                await wait_at_most(await self._look(), self._news)
                self._news.clear()
        finally:
            await end_tasks(*self._courses.values())
            if self._is_keeper:
                await self._leave()

    async def _leave(self) -> None:
        try:
            await self._store.release()
        except (RedisError, OSError) as exc:
            log.info("action=batches_left the lease of the batches must run out: %s", exc)

    async def _look(self) -> float:
        """One look; seconds until the next."""
        try:
            was_keeper, self._is_keeper = self._is_keeper, await self._store.hold()
            if not self._is_keeper:
                await self._let_go()
                self._outage.end()
                return self._settings.work.lease_seconds / LOOKS_PER_LEASE
            if not was_keeper:
                self._since = time.monotonic()
            await self._tend(await self._store.jobs())
            await self._store.wake()
            await self._take_turns()
            self._outage.end()
        except LeaseLostError:
            await self._let_go()
        except (RedisError, OSError, ThemesError) as exc:
            self._outage.begin(exc)
        return min(LOOK_SECONDS if self._stops else IDLE_SECONDS, self._settings.llm.batch_form_seconds)

    async def _take_turns(self) -> None:
        """Let another process keep the batches where some are at endpoints that this one does not have."""
        lease = self._settings.work.lease_seconds
        is_due = not self._own or time.monotonic() - self._since > LEASES_IN_TURN * lease
        if self._others and is_due and await self._store.release(for_seconds=lease):
            log.info("action=batches_turn another worker may see to what waits for its endpoints")
            self._is_keeper = False
            await self._let_go()

    async def _let_go(self) -> None:
        courses, self._courses = self._courses, {}
        await end_tasks(*courses.values())

    async def _tend(self, jobs: list[JobState]) -> None:
        now = time.time()
        waiting = {(job.job_id, shelf) for job in jobs for shelf in job.shelves}
        self._shelves = {key: shelf for key, shelf in self._shelves.items() if key in waiting}
        self._courses = {tag: task for tag, task in self._courses.items() if not task.done()}
        self._stops = {
            job.job_id: Stops(job.is_over, job.deadline_at is not None and now >= job.deadline_at, job.is_paused)
            for job in jobs
        }
        self._own = self._others = 0
        for job in jobs:
            for batch in job.batches:
                if batch.state == "forming" and batch.tag not in self._courses:
                    await self._form(job, batch)
                elif batch.state != "ended":
                    self._go_on(job, batch)
            for shelf, count in job.shelves.items():
                await self._serve(job, shelf, count, self._stops[job.job_id].unsent)

    def _go_on(self, job: JobState, batch: Batch) -> None:
        """See that a batch is on its course."""
        task = self._courses.get(batch.tag)
        if task is not None and not task.done():
            self._own += 1
            return
        course = self._course(batch)
        if course is None:
            return
        self._courses[batch.tag] = asyncio.create_task(self._follow(course, job.job_id), name=f"batch {batch.tag}")

    def _course(self, batch: Batch) -> Course | None:
        course = self._course_of(batch)
        self._own, self._others = self._own + (course is not None), self._others + (course is None)
        return course

    async def _follow(self, course: Course, job_id: str) -> None:
        try:
            await course.run(lambda: self._stops.get(job_id, WANTED))
        except JobPausedError as exc:
            log.warning("action=batch_pauses job_id=%s %s", job_id, exc)
            await self._pause(exc)
        except LeaseLostError:
            log.info("action=batch_left job_id=%s another process keeps the batches", job_id)
        except (RedisError, OSError, ThemesError) as exc:
            log.warning("action=batch_wait job_id=%s the batch is taken up again: %s", job_id, exc)
            await asyncio.sleep(LOOK_SECONDS)
        finally:
            self._news.set()

    async def _serve(self, job: JobState, shelf: str, count: int, end: Ending | None) -> None:
        """Let what waits on a shelf become a batch when it is time; nothing waits where its job waits no more."""
        if end:
            while await self._store.discard(job.job_id, shelf, end=end):
                continue
            return
        now = time.monotonic()
        known = self._shelves.setdefault((job.job_id, shelf), _Shelf())
        known.seen(count, now)
        endpoint, model = split_shelf(shelf)
        batch = Batch(uuid.uuid4().hex[:16], job.job_id, endpoint, model, time.time())
        if self._course(batch) is not None and count and known.is_due(self._settings, now):
            await self._form(job, batch)
            del self._shelves[job.job_id, shelf]

    async def _form(self, job: JobState, batch: Batch) -> None:
        """Fill a batch from its shelf."""
        llm = self._settings.llm
        while True:
            most, room = llm.batch_max_requests - batch.requests, int(llm.batch_max_mb * MIB) - batch.size_bytes
            taken = await self._store.take(
                batch, f"{batch.endpoint}/{batch.model}", min(most, TAKE_AT_ONCE), max(0, room)
            )
            batch = taken.batch
            if taken.stopped or not taken.count:
                break
        if batch.requests:
            batch = replace(batch, state="ready")
            await self._store.save(batch)
            log.info("action=batch_formed job_id=%s batch=%s requests=%d", job.job_id, batch.tag, batch.requests)
            self._go_on(job, batch)
        if taken.refused:
            await self._pause(taken.refused.error(job.job_id))
