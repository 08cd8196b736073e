"""Batches in the state file of a run without Redis: questions, reservations and bills outlive the process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from tasks.jobs.batches import Batch
from tasks.messages import Destination, JobClosed, JobOpened, JobOptions, Spent
from workers.llm.batches.bills import encoded
from workers.llm.batches.questions import FULL, IN_CACHE, LATE, Ask, Form, Kept, Question, Settled
from workers.llm.budget import BudgetBook
from workers.llm.cache.completions import StoreAwayError
from workers.local.batch_store import FileBatchStore
from workers.local.state_file import FileBook, StateFile
from workers.observe.call_journal import Bill
from workers.results.database.manager import AsyncDatabaseManager

JOB, SHELF = "job-1", "llm/sandbox"
KYOTO, OSAKA = Destination.of("Kyoto"), Destination.of("Osaka")
FORM = Form("f", "system", "instructions", "name", {})
BILL = encoded(Bill(prompt_tokens=10, completion_tokens=20, cost_usd=0.5, listed_usd=0.5, estimated=0))


class KilledError(Exception):
    """The process goes no further."""


@pytest.fixture
async def results(tmp_path: Path) -> AsyncIterator[AsyncDatabaseManager]:
    url = f"sqlite+aiosqlite:///{tmp_path / 'results.db'}"
    async with AsyncDatabaseManager(url, pool_size=3, timeout_seconds=180.0) as manager:
        await manager.apply([JobOpened(job, job, 1.0, JobOptions()) for job in (JOB, "job-2")])
        yield manager


async def opened(
    file: StateFile,
    results: AsyncDatabaseManager,
    *,
    job_id: str = JOB,
    deadline_at: float | None = None,
    book: FileBook | None = None,
    news: asyncio.Event | None = None,
    write: Callable[[Spent], Awaitable[None]] | None = None,
) -> FileBatchStore:
    async def apply(spent: Spent) -> None:
        await results.apply([spent])

    store = FileBatchStore(
        file=file, job_id=job_id, deadline_at=deadline_at, book_of_job=book, news=news or asyncio.Event(),
        find_job=results.job, write=write or apply, compress=True,
    )  # fmt: skip
    await store.open()
    return store


def asks(destination: Destination, *keys: str, job_id: str = JOB, worst: int = 0) -> list[Ask]:
    question = Question("f", "stage", "data", 100, worst, 1_000)
    payer = f"{destination.id} 1"
    return [Ask(key, f"cache-{key}", SHELF, question, job_id, destination.id, payer) for key in keys]


def batch_of(job_id: str = JOB) -> Batch:
    return Batch("tag", job_id, "llm", "sandbox", 1.0)


async def answer(store: FileBatchStore, batch: Batch, *keys: str, cost: int = 0) -> Batch:
    return await store.settle(batch, [Settled(key, "answered", b'{"a": 1}', cost, BILL) for key in keys])


async def calls_of(results: AsyncDatabaseManager) -> int:
    job = await results.job(JOB)
    assert job is not None
    return job.usage.llm_calls


async def test_a_destination_goes_on_when_its_last_question_has_an_end_and_not_before(
    tmp_path: Path, results: AsyncDatabaseManager
) -> None:
    news = asyncio.Event()
    with StateFile(tmp_path) as file:
        store = await opened(file, results, news=news)
        for one, its in ((KYOTO, ("a", "b")), (OSAKA, ("b", "c"))):
            assert await store.ask(asks(one, *its), [FORM], most=9) == [None, None]
        await store.park(KYOTO)
        batch = (await store.take(batch_of(), SHELF, 9, 10**6)).batch
        assert batch.requests == 3, "equal questions are one line"
        batch = await answer(store, batch, "a")
        await store.wake()
        assert (await store.woken(9), news.is_set()) == ([], False)
        await answer(store, batch, "b", "c")
        await store.wake()
        assert (await store.woken(9), news.is_set()) == ([KYOTO], True)
        # One whose questions are answered while it is at work waits for nothing.
        await store.park(OSAKA)
        assert await store.woken(9) == [OSAKA]
        assert await store.ask(asks(KYOTO, "a"), [], most=9) == [b'{"a": 1}']


async def test_the_next_process_finds_questions_and_answers_and_no_destination_that_waits(
    tmp_path: Path, results: AsyncDatabaseManager
) -> None:
    with StateFile(tmp_path) as file:
        store = await opened(file, results)
        await store.ask(asks(KYOTO, "a", "b", "c"), [FORM], most=9)
        await store.park(KYOTO)
        batch = (await store.take(batch_of(), SHELF, 2, 10**6)).batch
        await store.save(replace(batch, state="creating"), durable=True)
    with StateFile(tmp_path) as file:
        store = await opened(file, results)
        (job,) = await store.jobs()
        assert ([one.state for one in job.batches], dict(job.shelves)) == (["creating"], {SHELF: 1})
        assert [line.key async for page in store.lines(batch) for line in page] == ["a", "b"]
        assert await store.forms(["f", "other"]) == {"f": FORM}
        assert await store.ask(asks(KYOTO, "d"), [], most=3) == [FULL]
        await answer(store, batch, "a", "b")
        assert await store.woken(9) == []
        assert await store.ask(asks(KYOTO, "a", "c"), [], most=9) == [b'{"a": 1}', None]


async def test_lines_without_an_answer_wait_again_are_late_or_forgotten(
    tmp_path: Path, results: AsyncDatabaseManager
) -> None:
    with StateFile(tmp_path) as file:
        store = await opened(file, results)
        await store.ask(asks(KYOTO, "again", "anew", "late", "gone"), [FORM], most=9)
        batch = (await store.take(batch_of(), SHELF, 9, 10**6)).batch
        settled = await store.settle(batch, [Settled(end, end) for end in ("again", "anew", "late", "gone")])
        assert settled.unanswered == 4
        assert await store.ask(asks(KYOTO, "late"), [], most=9) == [LATE]
        await store.close(replace(settled, state="ended"))
        batch = (await store.take(replace(batch_of(), tag="next"), SHELF, 9, 10**6)).batch
        (lines,) = [page async for page in store.lines(batch)]
        assert [(line.key, line.tries) for line in lines] == [("again", 1), ("anew", 0)]
        late = msgspec.structs.replace(asks(OSAKA, "gone")[0], is_late=True)
        assert await store.ask([late], [], most=9) == [LATE], "nothing new after the deadline"


async def test_a_kill_between_the_books_and_their_receipt_books_a_bill_once(
    tmp_path: Path, results: AsyncDatabaseManager
) -> None:
    async def killed(spent: Spent) -> None:
        await results.apply([spent])
        raise KilledError

    with StateFile(tmp_path) as file:
        store = await opened(file, results, write=killed)
        await store.ask(asks(KYOTO, "a", "b"), [FORM], most=9)
        batch = (await store.take(batch_of(), SHELF, 9, 10**6)).batch
        batch = await answer(store, batch, "a")
        batch = await answer(store, batch, "b")
        with pytest.raises(KilledError):
            await store.book(batch)
    assert await calls_of(results) == 2
    with StateFile(tmp_path) as file:
        store = await opened(file, results)
        await store.book(batch)
        await store.book(batch)
    assert await calls_of(results) == 2


async def _exchanged(book: BudgetBook, spent: int, reserved: int, amounts: list[int]) -> list[int]:
    """The limit, what is spent, and the decisions."""
    answer = await book.exchange(spent, reserved, amounts)
    assert answer is not None
    standing, decided = answer
    return [standing.limit, standing.spent, *decided]


async def test_what_batches_have_reserved_is_kept_and_given_back_with_their_lines(
    tmp_path: Path, results: AsyncDatabaseManager
) -> None:
    with StateFile(tmp_path) as file:
        book = await file.budget(JOB, now=None, first=100, spent_nano=0)
        store = await opened(file, results, book=book)
        await store.ask(asks(KYOTO, "a", "b", "c", worst=40), [FORM], most=9)
        assert book is not None
        assert await _exchanged(book, 0, 0, [30]) == [100, 0, 1]
        taken = await store.take(batch_of(), SHELF, 9, 10**6)
        assert (taken.count, taken.stopped) == (1, "waits"), "a call under way has reserved its part"
        assert await _exchanged(book, 20, 0, []) == [100, 20]
        taken = await store.take(taken.batch, SHELF, 9, 10**6)
        assert (taken.count, taken.stopped) == (1, "waits")
        assert await _exchanged(book, 20, 0, [10]) == [100, 20, 0]
    # Killed: what the call has cost is known, and what the lines may cost is not spent.
    with StateFile(tmp_path) as file:
        book = await file.budget(JOB, now=None, first=100, spent_nano=0)
        assert book is not None
        store = await opened(file, results, book=book)
        assert book.spent_nano == 20
        assert await _exchanged(book, 0, 0, [10]) == [100, 20, 0]
        await answer(store, taken.batch, "a", cost=25)
        assert book.spent_nano == 45
        assert await _exchanged(book, 0, 0, [15, 1]) == [100, 45, 1, 0]
        assert (await store.take(taken.batch, SHELF, 9, 10**6)).stopped == "waits"
        await answer(store, taken.batch, "b", cost=35)
        assert (await store.take(taken.batch, SHELF, 9, 10**6)).stopped == "refused"
    with StateFile(tmp_path) as file:
        known = await file.budget(JOB, now=None, first=100, spent_nano=200)
        assert known is not None
        assert known.spent_nano == 200, "the results database knows of more"


async def test_what_waits_for_a_job_that_does_not_run_is_the_next_one_s(
    tmp_path: Path, results: AsyncDatabaseManager
) -> None:
    with StateFile(tmp_path) as file:
        store = await opened(file, results)
        await store.ask(asks(KYOTO, "a", "b"), [FORM], most=9)
        await store.take(batch_of(), SHELF, 1, 10**6)
    with StateFile(tmp_path) as file:
        store = await opened(file, results, job_id="job-2")
        first, second = asks(KYOTO, "a", "b", job_id="job-2", worst=7)
        assert await store.ask([first, second], [], most=1) == [None, None], "what others wait for takes no room"
        own, other = await store.jobs()
        assert (own.job_id, dict(own.shelves), other.job_id, dict(other.shelves)) == ("job-2", {SHELF: 1}, JOB, {})
        assert [one.tag for one in other.batches] == ["tag"]
        assert await store.ask(asks(KYOTO, "c", job_id="job-2"), [], most=1) == [FULL]
        assert await store.ask(asks(KYOTO, "c", job_id="job-2"), [], most=2) == [None]
        assert await store.pause(JOB) is False, "it waits for one of its lines"
        await answer(store, other.batches[0], "a")
        assert await store.pause(JOB) is True
    with StateFile(tmp_path) as file:
        store = await opened(file, results, job_id="job-3")
        assert [(job.job_id, dict(job.shelves)) for job in await store.jobs()] == [
            (JOB, {}), ("job-2", {}),
        ], "a job that does not run forms nothing"  # fmt: skip


async def test_the_batches_of_a_job_that_was_closed_are_to_end(tmp_path: Path, results: AsyncDatabaseManager) -> None:
    with StateFile(tmp_path) as file:
        store = await opened(file, results)
        await store.ask(asks(KYOTO, "a", "b"), [FORM], most=9)
        await store.take(batch_of(), SHELF, 1, 10**6)
        assert await file.has_batches(JOB)
    await results.apply([JobClosed(JOB, "cancelled", 2.0)])
    with StateFile(tmp_path) as file:
        store = await opened(file, results, job_id="job-2")
        (job,) = await store.jobs()
        assert (job.is_over, dict(job.shelves)) == (True, {SHELF: 1})
        assert await store.discard(JOB, SHELF, end="gone") == 0


async def test_at_its_deadline_a_job_waits_for_no_line_of_another(
    tmp_path: Path, results: AsyncDatabaseManager
) -> None:
    with StateFile(tmp_path) as file:
        store = await opened(file, results)
        await store.ask(asks(KYOTO, "other"), [FORM], most=9)
        await store.take(batch_of(), SHELF, 9, 10**6)
    with StateFile(tmp_path) as file:
        store = await opened(file, results, job_id="job-2", deadline_at=2.0)
        mine = asks(KYOTO, "own", "other", job_id="job-2")
        assert await store.ask(mine, [], most=9) == [None, None]
        await store.take(replace(batch_of("job-2"), tag="own"), SHELF, 9, 10**6)
        await store.park(KYOTO)
        await store.jobs()
        assert await store.woken(9) == [KYOTO]
        assert await store.ask([replace(one, is_late=True) for one in mine], [], most=9) == [None, LATE]
        await store.park(KYOTO)
        await store.jobs()
        assert await store.woken(9) == [], "its own batch is about to end"


async def test_a_file_that_cannot_be_written_now_is_waited_for(tmp_path: Path, results: AsyncDatabaseManager) -> None:
    with StateFile(tmp_path) as file:
        store = await opened(file, results)
        await file.look(lambda connection: connection.execute("PRAGMA query_only = ON"), StoreAwayError)
        with pytest.raises(StoreAwayError, match=r"run\.db"):
            await store.ask(asks(KYOTO, "a"), [FORM], most=9)
        await file.look(lambda connection: connection.execute("PRAGMA query_only = OFF"), StoreAwayError)
        assert await store.ask(asks(KYOTO, "a"), [FORM], most=1) == [None], "what was taken back takes no room"


async def test_answers_are_kept_together_in_the_place_of_what_they_were_made_of(
    tmp_path: Path, results: AsyncDatabaseManager
) -> None:
    with StateFile(tmp_path) as file:
        store = await opened(file, results)
        await store.ask(asks(KYOTO, "a", "b"), [FORM], most=9)
        batch = (await store.take(batch_of(), SHELF, 9, 10**6)).batch
        await answer(store, batch, "a", "b")
        # Destinations with the same question come to its answer at the same time.
        fresh = Kept("a", "cache-a", b"stored", IN_CACHE)
        twice = [fresh, fresh, Kept("b", "cache-b", b"2")]
        await store.keep(twice, ttl_ms=60_000)
        assert await store.ask(asks(KYOTO, "a", "b"), [], most=9) == [IN_CACHE, IN_CACHE]
        assert await file.read(["cache-a", "cache-b"]) == [b"stored", b"2"]
