"""One batch on its way to its end.

    ready -> uploaded -> creating -> running -> reading -> ended

Each step is written down before it is taken, so another process can go on from it. Only creating may have been done
without our knowing: the batch is looked for by its tag at the provider before it is created again. Reading is the
settling of lines, once each: a file that is read a second time changes nothing.
"""

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

from msgspec.structs import replace

from config.settings import Settings
from tasks.errors import (
    BadRequestError,
    EndpointDownError,
    EndpointRefusedError,
    GoneError,
    JobPausedError,
    PermanentError,
    RateLimitedError,
    RetryableError,
)
from tasks.jobs.batches import Batch
from workers.llm.batches.batch import ProviderBatch
from workers.llm.batches.lines import LineEnd, line_of
from workers.llm.batches.provider import Provider
from workers.llm.batches.questions import BatchStore, Ending, Form, Line, Settled
from workers.llm.batches.reading import Reader, without_answer
from workers.llm.billing import Billing
from workers.llm.cache.memory import MIB
from workers.llm.endpoints.answers import AnswerSchema
from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.route import Route
from workers.observe.profiler import PerformanceProfiler

log = logging.getLogger("themes.batches")

#: Seconds before the first look at a batch; doubled up to `llm.batch_poll_seconds`.
FIRST_POLL_SECONDS: Final = 1.0
#: Seconds before a step that has failed is taken again, at first and at most.
RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 60.0
#: Seconds between two looks at whether a batch is still wanted.
STOP_SECONDS: Final = 0.5


def batches_folder(settings: Settings) -> Path:
    """Where a batch's file stands while it is sent."""
    return settings.state_dir / "batches"


class Stops(NamedTuple):
    """Why a batch's job may want it no more: it is over, or its deadline has passed. A pause stops what is not sent."""

    is_over: bool = False
    is_late: bool = False
    is_paused: bool = False

    @property
    def reason(self) -> str:
        return "the job is over" if self.is_over else "the deadline has passed" if self.is_late else ""

    @property
    def unsent(self) -> Ending | None:
        """What becomes of what is not sent: another job may wait for it, and a paused one asks again."""
        return "gone" if self.is_over or self.is_paused else "late" if self.is_late else None


#: It wants it.
WANTED: Final = Stops()


class Course:
    """Sees a batch through. `folder` takes its file while it is sent."""

    def __init__(
        self, batch: Batch, store: BatchStore, provider: Provider, reader: Reader, settings: Settings, *, folder: Path
    ) -> None:
        self._batch = batch
        self._store = store
        self._provider = provider
        self._reader = reader
        self._settings = settings.llm
        self._folder = folder
        self._stops: Callable[[], Stops] = lambda: WANTED
        self._failures = 0
        self._poll_seconds = FIRST_POLL_SECONDS
        self._settles_at = 0.0
        self._forms: dict[str, tuple[Form, AnswerSchema]] = {}

    def __repr__(self) -> str:
        return f"<Course {self._batch.tag} {self._batch.state}>"

    async def run(self, stops: Callable[[], Stops]) -> None:
        """Go on until the batch has ended. `stops` is asked whether its job still wants it.

        Raises:
            JobPausedError: the provider takes no batches, or refuses the account or this batch.
            LeaseLostError: another process keeps the batches.
        """
        self._stops = stops
        steps = {
            "ready": self._upload, "uploaded": self._create, "creating": self._look_for, "running": self._watch,
            "reading": self._read,
        }  # fmt: skip
        while self._batch.state != "ended":
            try:
                await steps[self._batch.state]()
                self._failures = 0
            except (RetryableError, EndpointRefusedError) as exc:
                if isinstance(exc, EndpointRefusedError) and self._batch.state in {"ready", "uploaded"}:
                    raise JobPausedError(str(exc), job_id=self._batch.job_id, reason="account") from exc
                await self._again(exc)
            except BadRequestError as exc:
                if self._batch.state not in {"ready", "uploaded"}:
                    await self._again(exc)
                    continue
                await self._dissolve("gone")
                raise JobPausedError(str(exc), job_id=self._batch.job_id, reason="batch") from exc

    async def _again(self, exc: Exception) -> None:
        """Wait before a step is taken again."""
        self._failures += 1
        wait = min(MAX_RETRY_SECONDS, RETRY_SECONDS * 2.0 ** min(self._failures - 1, 16))
        if isinstance(exc, RateLimitedError) and exc.retry_after_seconds is not None:
            wait = exc.retry_after_seconds
        log.warning("action=batch_retry batch=%s state=%s again in %.0f s: %s",
                    self._batch.tag, self._batch.state, wait, exc)  # fmt: skip
        await self._save(said=str(exc))
        await self._rest(wait)

    async def _rest(self, seconds: float) -> None:
        """Wait, but not where the batch is wanted no more and that is not known to the provider."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stops().reason and not self._batch.stop:
                return
            await asyncio.sleep(min(left, STOP_SECONDS))

    async def _save(self, **changes: object) -> None:
        changed = replace(self._batch, **changes)
        if changed != self._batch:
            # Before a step at the provider that cannot be taken back.
            await self._store.save(changed, durable=changed.state == "creating")
            self._batch = changed

    async def _upload(self) -> None:
        if end := self._stops().unsent:
            await self._dissolve(end)
            return
        batch, name = self._batch, f"themes-{self._batch.tag}.jsonl"
        mark = self._reader.client.mark()
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, suffix=".jsonl") as file:
            if not await self._write(file):
                await self._close("")
                return
            # An upload whose reply was lost has left a file.
            if lost := await self._provider.find_file(name, since=batch.formed_at):
                await self._provider.delete(lost)
            file_id = await self._provider.upload(Path(file.name), name)
        await self._save(state="uploaded", file_id=file_id, asked_as=mark, said="")

    async def _write(self, file: IO[bytes]) -> int:
        """Write the lines of the batch into a file; those that cannot be, or do not fit, leave it. How many it has."""
        most, size, count = int(self._settings.batch_max_mb * MIB), 0, 0
        async for page in self._store.lines(self._batch):
            left, pieces = list[Settled](), list[bytes]()
            prompts = await self._prompts_of(page)
            for line in page:
                prompt = prompts.get(line.key)
                piece = b"" if prompt is None else self._line(line, prompt)
                if prompt is None or (count and size + len(piece) > most):
                    left.append(Settled(line.key, "late" if prompt is None else "anew"))
                    continue
                pieces.append(piece)
                size, count = size + len(piece), count + 1
            await asyncio.to_thread(file.write, b"".join(pieces))
            if left:
                self._batch = await self._store.settle(self._batch, left)
        await asyncio.to_thread(file.flush)
        return count

    def _line(self, line: Line, prompt: Prompt) -> bytes:
        body = self._reader.client.body(prompt, prompt.max_tokens)
        return line_of(line.key, body, self._provider.line_url)

    async def _prompts_of(self, page: Sequence[Line]) -> dict[str, Prompt]:
        """The prompts of lines, by key; without those whose text has left the store."""
        digests = sorted({line.question.form for line in page if line.question} - self._forms.keys())
        for digest, form in (await self._store.forms(digests) if digests else {}).items():
            self._forms[digest] = form, AnswerSchema(form.schema_name, form.schema)
        return {
            line.key: line.question.prompt(*known)
            for line in page
            if line.question and (known := self._forms.get(line.question.form))
        }

    async def _create(self) -> None:
        if end := self._stops().unsent:
            await self._dissolve(end)
            return
        await self._save(state="creating", asked_at=time.time())
        try:
            there = await self._provider.create(self._batch.file_id, self._batch.tag)
        except GoneError as exc:
            await self._save(state="ready")
            raise EndpointDownError(str(exc)) from exc
        except (RateLimitedError, BadRequestError) as exc:
            # It said no: there is nothing to look for.
            await self._save(state="uploaded", said=str(exc))
            raise
        else:
            await self._save(state="running", id=there.id, said="")

    async def _look_for(self) -> None:
        """Find a batch that may have been created, or be sure that it was not."""
        listed = await self._provider.find(self._batch.tag, since=self._batch.asked_at)
        # One that failed without a result was sent before, when there was no room for it, or will fail again.
        if found := [one for one in listed if one.state != "failed" or one.results]:
            oldest, *others = sorted(found, key=lambda one: (one.created_at, one.id))
            for one in others:
                log.error("action=batch_double batch=%s is there twice: %s is cancelled", self._batch.tag, one.id)
                await self._provider.cancel(one.id)
            log.info("action=batch_found batch=%s is %s at the provider", self._batch.tag, oldest.id)
            await self._save(state="running", id=oldest.id, said="")
            return
        left = self._batch.asked_at + self._settings.batch_settle_seconds - time.time()
        if left > 0:
            await asyncio.sleep(min(left + 0.001, self._next_poll()))
        else:
            await self._save(state="uploaded")

    def _next_poll(self) -> float:
        seconds = min(self._poll_seconds, self._settings.batch_poll_seconds)
        self._poll_seconds = min(self._settings.batch_poll_seconds, 2 * self._poll_seconds)
        return seconds

    async def _watch(self) -> None:
        batch = self._batch
        try:
            if (reason := self._stops().reason) and not batch.stop:
                await self._save(stop=reason)
                there = await self._provider.cancel(batch.id)
            else:
                there = await self._provider.status(batch.id)
        except GoneError as exc:
            if time.time() < batch.asked_at + self._settings.batch_settle_seconds:
                raise EndpointDownError(str(exc)) from exc  # it may not be seen yet
            await self._save(state="reading", end="failed", said=str(exc))
            return
        if there.state == "running":
            await self._save(done_there=there.completed + there.failed, said=there.said)
            await self._rest(there.retry_after_seconds or self._next_poll())
        elif there.is_refused_for_now and not self._batch.stop:
            await self._save(state="uploaded", id="", said=there.said)
            await self._rest(MAX_RETRY_SECONDS)
        elif there.completed and not there.results and not self._has_settled():
            await self._rest(self._next_poll())  # the file of its answers is not told yet
        else:
            await self._ended(there)

    def _has_settled(self) -> bool:
        """Whether it was first asked as long ago as a provider's replies may lag behind."""
        self._settles_at = self._settles_at or time.monotonic() + self._settings.batch_settle_seconds
        return time.monotonic() >= self._settles_at

    async def _ended(self, there: ProviderBatch) -> None:
        log.info("action=batch_ended batch=%s end=%s answered=%d failed=%d %s",
                 self._batch.tag, there.state, there.completed, there.failed, there.said)  # fmt: skip
        await self._save(
            state="reading", end=there.state, results=there.results, said=there.said,
            done_there=there.completed + there.failed,
        )  # fmt: skip

    async def _read(self) -> None:
        """Read what it has answered, give every other line its end, book, and tidy up."""
        before = -1
        while self._batch.answered > before:
            # Once more where anything was settled: a store that has crashed meanwhile may have lost some of it.
            before = self._batch.answered
            await self._read_results()
        batch = self._batch
        is_refused = batch.end == "failed" and not batch.results and not batch.stop
        await self._settle_rest("gone" if is_refused else None)
        await self._close(batch.end)
        if is_refused:
            said = f"a batch was refused: {batch.said or 'without a reason'}"
            raise JobPausedError(said, job_id=batch.job_id, reason="batch")

    async def _read_results(self) -> None:
        for file_id in self._batch.results if await self._has_lines() else ():
            try:
                async for some in self._provider.lines(file_id):
                    await self._settle(some)
            except GoneError:
                log.exception("action=batch_lost batch=%s a file of its results is gone", self._batch.tag)

    async def _has_lines(self) -> bool:
        async for _ in self._store.lines(self._batch):
            return True
        return False

    async def _settle(self, some: Sequence[LineEnd]) -> None:
        characters = self._batch.size_bytes // max(1, self._batch.requests)
        ends: dict[str, Settled | None] = {}
        for one in some:
            # The first answer counts, whatever else is said of its question.
            ends[one.key] = ends.get(one.key) or self._reader.answered(one, prompt_characters=characters)
        refused = {one.key: one for one in some if ends[one.key] is None}
        lines = await self._store.find(self._batch, [*refused]) if refused else []
        prompts = await self._prompts_of(lines)
        for line in lines:
            is_learnt = self._reader.learnt(refused[line.key], prompts.get(line.key), self._batch.asked_as)
            ends[line.key] = Settled(line.key, "anew" if is_learnt else self._without(line))
        # A file of one line after the other: others get their turn.
        await asyncio.sleep(0)
        self._batch = await self._store.settle(self._batch, [end for end in ends.values() if end])

    def _without(self, line: Line) -> Ending:
        stops = self._stops()
        return without_answer(line, is_over=stops.is_over, is_late=stops.is_late)

    async def _settle_rest(self, end: Ending | None) -> None:
        """Give lines that the results do not name their end."""
        async for page in self._store.lines(self._batch):
            ends = [Settled(line.key, end or self._without(line)) for line in page]
            self._batch = await self._store.settle(self._batch, ends)

    async def _dissolve(self, end: Ending) -> None:
        """Give up a batch that was never created."""
        await self._settle_rest(end)
        await self._close("")

    async def _close(self, end: str) -> None:
        await self._store.book(self._batch)
        # What is deleted there cannot be read again.
        await self._store.save(self._batch, durable=True)
        if not self._settings.batch_keep_files:
            for file_id in filter(None, (self._batch.file_id, *self._batch.results)):
                try:
                    await self._provider.delete(file_id)
                except (RetryableError, PermanentError) as exc:
                    log.warning("action=batch_file_stays batch=%s %s: %s", self._batch.tag, file_id, exc)
        ended = replace(self._batch, state="ended", end=end, ended_at=time.time())
        await self._store.close(ended)
        self._batch = ended


class Courses:
    """Makes the courses of batches whose endpoints this process has; `folder` takes their files."""

    def __init__(
        self,
        store: BatchStore,
        routes: Sequence[Route],
        settings: Settings,
        profiler: PerformanceProfiler,
        folder: Path,
    ) -> None:
        self._store = store
        self._routes = {(route.name, route.model): route for route in routes}
        self._settings = settings
        self._profiler = profiler
        self._billing = Billing(settings)
        self._folder = folder
        self._said: set[tuple[str, str]] = set()

    def __repr__(self) -> str:
        return f"<Courses {[*self._routes]}>"

    def __call__(self, batch: Batch) -> Course | None:
        place = batch.endpoint, batch.model
        route = self._routes.get(place)
        if route is None:
            if place not in self._said:
                self._said.add(place)
                log.warning(
                    "action=batch_elsewhere job_id=%s no endpoint %s for %s is set here: its batches wait",
                    batch.job_id, *place,
                )  # fmt: skip
            return None
        provider = Provider(route.client, route.client.connections, self._settings.llm)
        reader = Reader(route, self._billing, self._profiler)
        return Course(batch, self._store, provider, reader, self._settings, folder=self._folder)
