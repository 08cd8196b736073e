"""What a worker process writes down of its calls, and what others make of it once it is dead."""

import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.messages import Destination, Spent, StreamEntry, Usage, unpack
from tests.support.stored import KYOTO, announced, done
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.endpoints.counted_body import CountedBody
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.generator import FocusedLLMGenerator
from workers.llm.spend import Spend
from workers.observe.call_file import BAD_SUFFIX, FOLDER, NEW_SUFFIX, SPARE_SLOTS, SUFFIX, DamagedJournalError, read
from workers.observe.call_journal import Bill, CallJournal, Expected, recording
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.graph import Graph
from workers.pipeline.processor import FocusedPromptProcessor
from workers.pipeline.prompts import load_stages
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.journal import BAD_FILES, JournalReplayer, StreamDelivery
from workers.sandbox.server import SandboxServer

MakeSettings = Callable[..., Settings]
JOB = "20261126-080000-abcdef"
EXPECTED = Expected(prompt_tokens=100, completion_tokens=50, cost_usd=0.5)


@pytest.fixture
def settings(settings_for: MakeSettings) -> Settings:
    return settings_for()


@pytest.fixture
def folder(settings: Settings) -> Path:
    return settings.state_dir / FOLDER


@pytest.fixture
def journal(folder: Path) -> Iterator[CallJournal]:
    made = CallJournal.in_folder(folder, worker="w@h", lanes=2)
    yield made
    made.close()


def _entries(redis: Redis) -> list[Spent]:
    found: list[StreamEntry] = [unpack(fields[b"b"], StreamEntry) for _, fields in redis.xrange(keys.RESULTS)]
    return [entry for entry in found if isinstance(entry, Spent)]


def _call(run, *, answered: bool = True) -> None:
    """One call from its beginning to its end, or until its answer is awaited."""
    run.sending()
    run.sent(EXPECTED)
    if answered:
        run.ended(1, EXPECTED, Bill(10, 5, 0.25, 0.25))


def _orphanage(settings: Settings, redis: Redis, *, knows: Callable[[str], bool] = lambda _: False) -> JournalReplayer:
    return JournalReplayer(settings.state_dir, StreamDelivery(settings, redis, knows=knows))


def _left(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def _dead(folder: Path, *, job: str = JOB, runs: int = 1) -> Path:
    """What a process leaves that dies with so many runs in hand: two calls each, one of them unanswered."""
    journal = CallJournal.in_folder(folder, worker="w@h", lanes=runs)
    for number in range(runs):
        run = journal.begin(job, f"town-{number}", attempt=1)
        _call(run)
        _call(run, answered=False)
    path = journal.path
    journal.close()
    assert path
    return path


# --- writing -------------------------------------------------------------------------------------------------------


def test_what_is_under_way_counts_with_what_was_expected_and_an_answer_takes_its_place(journal: CallJournal) -> None:
    run = journal.begin(JOB, "d", 1)
    _call(run, answered=False)
    waiting = Usage(
        llm_calls=1, prompt_tokens=100, completion_tokens=50, estimated_calls=1, cost_usd=0.5, listed_usd=0.5
    )
    assert run.usage() == waiting
    run.ended(1, EXPECTED, Bill(10, 5, 0.25, 0.25))
    assert run.usage() == Usage(llm_calls=1, prompt_tokens=10, completion_tokens=5, cost_usd=0.25, listed_usd=0.25)
    _call(run, answered=False)
    run.ended(1, EXPECTED)
    assert run.usage() == Usage(llm_calls=2, prompt_tokens=10, completion_tokens=5, cost_usd=0.25, listed_usd=0.25)


def test_an_unknown_price_is_unknown_in_the_file_and_one_under_way_is_forgotten_with_its_end(
    journal: CallJournal, folder: Path
) -> None:
    run = journal.begin(JOB, "d", 1)
    run.sending()
    run.sent(Expected(1, 1, None))
    assert run.usage().cost_usd is None
    run.ended(1, Expected(1, 1, None), Bill(cost_usd=0.5))
    assert run.usage().cost_usd == 0.5
    run.ended(0, bill=Bill(cost_usd=None))
    (orphan,) = read(_left(folder)[0].read_bytes()).orphans
    assert orphan.usage.cost_usd is None


def test_the_file_says_what_the_run_says(journal: CallJournal, folder: Path) -> None:
    run = journal.begin(JOB, "d", 3)
    _call(run)
    _call(run, answered=False)
    run.cached(Usage(cache_hits=2, memory_hits=1, coalesced=3, saved_prompt_tokens=7, saved_usd=None, bytes_raw=9))
    remains = read(_left(folder)[0].read_bytes())
    (orphan,) = remains.orphans
    assert (remains.worker, remains.pid) == ("w@h", os.getpid())
    assert (orphan.job_id, orphan.destination_id, orphan.attempt, orphan.uncertain) == (JOB, "d", 3, 0)
    assert orphan.usage == run.usage()
    assert orphan.usage.cache_hits == 2
    assert orphan.usage.saved_usd is None


def test_a_booked_run_frees_its_slot_and_what_comes_late_is_not_of_it(journal: CallJournal, folder: Path) -> None:
    runs = [journal.begin(JOB, f"d{number}", 1) for number in range(2 + SPARE_SLOTS)]
    assert len(read(_left(folder)[0].read_bytes()).orphans) == len(runs)
    # Beyond its slots a run is counted all the same, and not written down.
    surplus = journal.begin(JOB, "surplus", 1)
    _call(surplus)
    assert surplus.usage().llm_calls == 1
    for run in runs:
        run.books_at(time.time())
        _call(run)
        run.forget()
    assert read(_left(folder)[0].read_bytes()).orphans == ()
    again = journal.begin(JOB, "again", 1)
    _call(again)
    runs[0].sent(EXPECTED)
    (orphan,) = read(_left(folder)[0].read_bytes()).orphans
    assert (orphan.destination_id, orphan.usage.llm_calls) == ("again", 1)


def test_a_call_that_was_being_sent_when_its_process_died_counts_and_is_called_uncertain(
    journal: CallJournal, folder: Path
) -> None:
    run = journal.begin(JOB, "d", 1)
    for _ in range(300):
        _call(run)
    run.sending()
    (orphan,) = read(_left(folder)[0].read_bytes()).orphans
    assert (orphan.usage.llm_calls, orphan.uncertain) == (301, 1)
    run.unsent()
    (orphan,) = read(_left(folder)[0].read_bytes()).orphans
    assert (orphan.usage.llm_calls, orphan.uncertain) == (300, 0)


def test_half_a_write_leaves_what_was_there_before(journal: CallJournal, folder: Path) -> None:
    run = journal.begin(JOB, "d", 1)
    _call(run)
    before = _left(folder)[0].read_bytes()
    run.sent(EXPECTED)
    after = _left(folder)[0].read_bytes()
    changed = [at for at in range(len(before)) if before[at] != after[at]]
    valid, numbers = changed[0], changed[1:]
    assert numbers
    # The kill comes after any of the stores, and before the one byte that makes them valid.
    for end in range(len(numbers)):
        torn = bytearray(before)
        for at in numbers[: end + 1]:
            torn[at] = after[at]
        assert read(bytes(torn)).orphans == read(before).orphans
    torn[valid] = after[valid]
    assert read(bytes(torn)).orphans == read(after).orphans != read(before).orphans


async def test_a_run_keeps_its_slot_until_what_was_booked_is_durable(journal: CallJournal, folder: Path) -> None:
    futures: list[asyncio.Future[None]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
    for number, future in enumerate(futures):
        run = journal.begin(JOB, f"d{number}", 1)
        _call(run)
        run.durable = future
        run.books_at(time.time())
        run.forget()
    assert len(read(_left(folder)[0].read_bytes()).orphans) == 2
    futures[0].set_result(None)
    futures[1].cancel()
    await asyncio.sleep(0)
    (orphan,) = read(_left(folder)[0].read_bytes()).orphans
    assert orphan.destination_id == "d1"


@contextlib.contextmanager
def _deleted_folder(folder: Path) -> Iterator[None]:
    shutil.rmtree(folder)
    yield


@contextlib.contextmanager
def _deleted_file(folder: Path) -> Iterator[None]:
    _left(folder)[0].unlink()
    yield


@contextlib.contextmanager
def _renamed_folder(folder: Path) -> Iterator[None]:
    folder.rename(folder.with_name("elsewhere"))
    yield
    # What is in the old file is in the new one: nothing is booked twice.
    assert [read(path.read_bytes()).orphans for path in _left(folder.with_name("elsewhere"))] == [()]


@contextlib.contextmanager
def _replaced_file(folder: Path) -> Iterator[None]:
    path = _left(folder)[0]
    path.unlink()
    path.write_bytes(b"")
    yield
    path.unlink()


@pytest.mark.parametrize("hurt", [_deleted_folder, _deleted_file, _renamed_folder, _replaced_file])
async def test_a_journal_that_is_no_longer_in_its_place_goes_on_in_a_new_one(
    folder: Path, hurt: Callable[[Path], contextlib.AbstractContextManager[None]]
) -> None:
    journal = CallJournal.in_folder(folder, worker="w@h", lanes=2)
    waits, handed_in = journal.begin(JOB, "waits", 1), journal.begin(JOB, "handed in", 2)
    _call(waits, answered=False)
    waits.cached(Usage(cache_hits=3))
    _call(handed_in)
    handed_in.books_at(time.time())
    before = read(_left(folder)[0].read_bytes())
    await journal.keep()
    with hurt(folder):
        await journal.keep()
        assert journal.off == ""
    (path,) = _left(folder)
    moved = {one.destination_id: one for one in read(path.read_bytes()).orphans}
    assert moved == {one.destination_id: one for one in before.orphans}
    waits.ended(1, EXPECTED, Bill(10, 5, 0.25, 0.2, 0, 7, 2, 3, 0.1))
    waits.cached(Usage(cache_hits=1))
    (orphan,) = (one for one in read(path.read_bytes()).orphans if one.destination_id == "waits")
    assert orphan.usage == waits.usage()
    assert orphan.usage.cache_hits == 4
    known = orphan.usage
    assert (known.cached_tokens, known.cache_write_tokens, known.reasoning_tokens, known.listed_usd) == (7, 2, 3, 0.2)
    assert known.tier_saved_usd == 0.1
    for run in (waits, handed_in):
        run.forget()
    journal.close()
    assert _left(folder) == []


async def test_a_journal_that_could_not_be_made_comes_back_with_what_is_in_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "var").write_text("in the way")
    folder = tmp_path / "var" / FOLDER
    journal = CallJournal.in_folder(folder, worker="w@h", lanes=2)
    runs = [journal.begin(JOB, f"d{number}", 1) for number in range(3)]
    for run in runs:
        _call(run)
    runs[0].forget()
    for _ in range(3):
        await journal.keep()
    assert "cannot be written" in journal.off
    assert len([said for said in caplog.messages if "recorder_off" in said]) == 1
    (tmp_path / "var").unlink()
    await journal.keep()
    assert journal.off == ""
    _call(runs[1])
    orphans = {one.destination_id: one.usage.llm_calls for one in read(_left(folder)[0].read_bytes()).orphans}
    assert orphans == {"d1": 2, "d2": 1}
    journal.close()


async def test_a_full_disk_keeps_what_is_in_the_old_file_and_is_said_until_there_is_room(
    folder: Path,
) -> None:
    """As root every folder can be written, and no disk is full: a limit on the size of files says the same."""
    journal = CallJournal.in_folder(folder, worker="w@h", lanes=2)
    run = journal.begin(JOB, "d", 1)
    _call(run)
    _left(folder)[0].unlink()
    with _files_of_at_most(1_000):
        await journal.keep()
        assert "cannot be written" in journal.off
        _call(run)
        assert list(folder.iterdir()) == []
    await journal.keep()
    assert journal.off == ""
    (orphan,) = read(_left(folder)[0].read_bytes()).orphans
    assert orphan.usage.llm_calls == 2
    journal.close()


@contextlib.contextmanager
def _files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Within the body, this process can write no larger file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


CHILD = """
import os, random, sys
from pathlib import Path
from workers.observe.call_journal import Bill, CallJournal, Expected
journal = CallJournal.in_folder(Path(sys.argv[1]), worker="child", lanes=4)
expected = Expected(100, 50, 0.5)
chance = random.Random(int(sys.argv[2]))
runs = [journal.begin("j", f"d{number}", 1) for number in range(4)]
under_way = [0] * 4
os.write(1, b"\\n")
while True:
    at = chance.randrange(4)
    if under_way[at] and chance.random() < 0.5:
        under_way[at] -= 1
        runs[at].ended(1, expected, Bill(10, 5, 0.25, 0.2, 0, 7, 2, 3))
    else:
        runs[at].sending()
        os.write(1, b"%d" % at)
        under_way[at] += 1
        runs[at].sent(expected)
"""


@pytest.mark.parametrize("seed", range(8))
def test_a_process_killed_at_any_moment_leaves_every_call_that_the_system_had_got(folder: Path, seed: int) -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(seed)], stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.read(1) == b"\n"
        reader = ThreadPoolExecutor(1).submit(child.stdout.read)
        time.sleep(random.Random(seed).uniform(0.001, 0.2))
        child.send_signal(signal.SIGKILL)
        sent = reader.result(20)
    (path,) = _left(folder)
    orphans = {one.destination_id: one for one in read(path.read_bytes()).orphans}
    assert sum(one.uncertain for one in orphans.values()) <= 1
    for number in range(4):
        one = orphans[f"d{number}"]
        calls, got = one.usage.llm_calls, sent.count(b"%d" % number)
        assert got <= calls <= got + one.uncertain
        # Answered calls have 10 and 5 tokens, those under way 100 and 50: no half of either.
        answered = one.usage.llm_calls - one.uncertain - one.usage.estimated_calls
        assert one.usage.prompt_tokens == 10 * answered + 100 * one.usage.estimated_calls
        assert one.usage.completion_tokens == 5 * answered + 50 * one.usage.estimated_calls
        assert one.usage.cost_usd == pytest.approx(0.25 * answered + 0.5 * one.usage.estimated_calls)
        assert one.usage.listed_usd == pytest.approx(0.2 * answered + 0.5 * one.usage.estimated_calls)
        parts = one.usage.cached_tokens, one.usage.cache_write_tokens, one.usage.reasoning_tokens
        assert parts == (7 * answered, 2 * answered, 3 * answered)


def test_without_a_folder_to_write_to_the_work_goes_on_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    journal = CallJournal.in_folder(tmp_path / "file" / FOLDER, worker="w", lanes=2)
    run = journal.begin(JOB, "d", 1)
    _call(run)
    assert run.usage().llm_calls == 1
    run.forget()
    journal.close()
    (said,) = caplog.messages
    assert "cannot be written" in said
    assert "THEMES_STATE_DIR" in said


def test_a_process_that_ends_with_nothing_in_hand_leaves_no_file(folder: Path) -> None:
    journal = CallJournal.in_folder(folder, worker="w", lanes=2)
    run = journal.begin(JOB, "d", 1)
    _call(run)
    run.forget()
    journal.close()
    assert list(folder.iterdir()) == []


# --- booking -------------------------------------------------------------------------------------------------------


def test_the_dead_are_booked_and_the_living_left_alone(
    redis: Redis, settings: Settings, folder: Path, journal: CallJournal
) -> None:
    redis.hset(keys.job(JOB), "state", "running")
    _call(journal.begin(JOB, "alive", 1))
    _dead(folder, runs=3)
    _dead(folder, runs=2)
    assert _orphanage(settings, redis).book() == 10
    entries = _entries(redis)
    assert sorted(entry.destination_id for entry in entries) == ["town-0", "town-0", "town-1", "town-1", "town-2"]
    assert all(entry.lost and entry.worker == "w@h" and entry.usage.estimated_calls == 1 for entry in entries)
    assert len(_left(folder)) == 1
    assert _orphanage(settings, redis).book() == 0


def test_many_who_book_at_once_book_once(redis_url: str, redis: Redis, settings: Settings, folder: Path) -> None:
    redis.hset(keys.job(JOB), "state", "running")
    for _ in range(10):
        _dead(folder)

    def book(_: int) -> int:
        with Redis.from_url(redis_url) as own:
            return _orphanage(settings, own).book()

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(book, range(8))) == 20
    assert len(_entries(redis)) == 10


async def test_what_is_booked_twice_or_has_a_result_already_counts_once(
    redis: Redis, settings: Settings, folder: Path, tmp_path: Path
) -> None:
    redis.hset(keys.job("j"), "state", "running")
    journal = CallJournal.in_folder(folder, worker="w", lanes=2)
    lost, finished = journal.begin("j", "lost", 0), journal.begin("j", KYOTO.id, 0)
    _call(lost)
    _call(finished)
    result = done(KYOTO, usage=finished.usage())
    finished.books_at(result.at)
    journal.close()
    (path,) = _left(folder)
    kept = tmp_path / "kept"
    shutil.copy2(path, kept)
    _orphanage(settings, redis).book()
    # Whoever booked died before it could remove the file.
    shutil.copy2(kept, path)
    _orphanage(settings, redis).book()
    spent = _entries(redis)
    assert len(spent) == 4
    async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{tmp_path / 'themes.db'}") as store:
        for entries in ([*announced(KYOTO), result], spent, [result, *spent]):
            await store.apply(entries)
        job = await store.job("j")
        totals = await store.totals()
        async with store.reading() as connection:
            runs = await connection.exec_driver_sql("SELECT outcome, llm_calls FROM attempts ORDER BY outcome")
            assert [tuple(row) for row in runs] == [("lost", 1), ("ok", 1)]
    assert job
    assert job.usage.llm_calls == totals["llm_calls"] == 2
    assert (totals["runs"], totals["lost_runs"], totals["destinations_ok"]) == (2, 1, 1)


def test_a_redis_that_is_away_leaves_the_file_for_later(redis: Redis, settings: Settings, folder: Path) -> None:
    _dead(folder)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away = Redis(port=nobody.getsockname()[1], retry=None)
        with pytest.raises(RedisConnectionError):
            _orphanage(settings, away).book()
    assert len(_left(folder)) == 1
    redis.hset(keys.job(JOB), "state", "running")
    assert _orphanage(settings, redis).book() == 2


def test_what_belongs_to_jobs_that_nobody_knows_waits_a_week_and_is_told_once(
    redis: Redis, settings: Settings, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _dead(folder)
    orphanage = _orphanage(settings, redis)
    assert [orphanage.book() for _ in range(3)] == [0, 0, 0]
    assert len([said for said in caplog.messages if JOB in said]) == 1
    # The database may know what has left Redis.
    assert _orphanage(settings, redis, knows=lambda job_id: job_id == JOB).book() == 2
    path = _dead(folder)
    long_ago = time.time() - keys.KEEP_SECONDS - 1
    os.utime(path, (long_ago, long_ago))
    assert _orphanage(settings, redis).book() == 0
    assert _left(folder) == []
    assert len(_entries(redis)) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"short", bytes(8192), os.urandom(8192), b"themes\x00\x01" + b"\xff" * 5000, bytes(5 * 1024 * 1024)],
)
def test_a_foreign_file_is_set_aside_with_one_clear_line(
    redis: Redis, settings: Settings, folder: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    redis.hset(keys.job(JOB), "state", "running")
    folder.mkdir(parents=True)
    (folder / f"foreign{SUFFIX}").write_bytes(content)
    _dead(folder)
    orphanage = _orphanage(settings, redis)
    assert [orphanage.book(), orphanage.book()] == [2, 0]
    assert [path.name for path in folder.iterdir()] == [f"foreign{BAD_SUFFIX}"]
    assert len([said for said in caplog.messages if "set aside" in said]) == 1


def test_a_slot_that_cannot_be_true_is_refused_whatever_is_wrong_with_it(folder: Path) -> None:
    good = _dead(folder).read_bytes()
    chance = random.Random(7)
    refused = 0
    for _ in range(2_000):
        bad = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            bad[chance.randrange(len(bad) if chance.random() < 0.2 else 4_700)] = chance.randrange(256)
        try:
            read(bytes(bad))
        except DamagedJournalError:
            refused += 1
    assert refused > 0


def test_of_unreadable_files_a_few_are_kept_and_unfinished_ones_go(
    redis: Redis, settings: Settings, folder: Path
) -> None:
    folder.mkdir(parents=True)
    for number in range(BAD_FILES + 5):
        (folder / f"{number}{BAD_SUFFIX}").write_bytes(b"")
    for name, age in (("old", 3_600), ("fresh", 0)):
        (folder / f"{name}{NEW_SUFFIX}").write_bytes(b"")
        os.utime(folder / f"{name}{NEW_SUFFIX}", (time.time() - age,) * 2)
    _orphanage(settings, redis).book()
    assert len(list(folder.glob(f"*{BAD_SUFFIX}"))) == BAD_FILES
    assert [path.stem for path in folder.glob(f"*{NEW_SUFFIX}")] == ["fresh"]


# --- what is counted -----------------------------------------------------------------------------------------------


@pytest.fixture
async def processor(settings_for: MakeSettings, sandbox: SandboxServer) -> AsyncIterator[FocusedPromptProcessor]:
    """A processor that asks the sandbox, with prices and second requests."""
    settings = settings_for(
        OPENAI_BASE_URL=sandbox.base_url,
        THEMES_MODEL="sandbox",
        THEMES_LLM__PRICES="{sandbox: {input_usd: 1, output_usd: 2}}",
        THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY="0.01",
        THEMES_LLM__HEDGE="true",
    )
    profiler = PerformanceProfiler(enabled=True)
    cache = PersistentLLMCache(None, max_memory_mb=64, pressure_mb=4096, ttl_days=1, compress=True)
    async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, None) as pool:
        generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
        yield FocusedPromptProcessor(Graph(load_stages()), generator, settings=settings, profiler=profiler)


async def test_a_run_is_written_down_as_it_is_accounted_for_with_retries_hits_and_refusals(
    processor: FocusedPromptProcessor, sandbox: SandboxServer, journal: CallJournal, folder: Path
) -> None:
    faults = ("500=0.2", "429=0.2,retry_after=0", "truncated=0.2", "reset=0.2", "invalid=0.2")
    sandbox.set_faults([f"{fault},times=1" for fault in faults])
    places = [Destination.of(f"Town {number % 8}") for number in range(12)]
    runs = [journal.begin(JOB, f"d{number}", 1) for number in range(len(places))]

    async def process(number: int) -> Usage:
        with recording(runs[number]):
            return (await processor.process(places[number])).usage

    usages = await asyncio.gather(*(process(number) for number in range(len(places))))
    written = {one.destination_id: one.usage for one in read(_left(folder)[0].read_bytes()).orphans}
    for number, usage in enumerate(usages):
        found = written[f"d{number}"]
        for name in Usage.__struct_fields__:
            assert getattr(found, name) == pytest.approx(getattr(usage, name)), name
    assert sum(usage.llm_calls for usage in usages) == sandbox.stats()["requests"] > 8 * 16
    assert sum(usage.coalesced for usage in usages) > 0


async def test_a_call_counts_from_the_moment_it_is_sent(sandbox: SandboxServer) -> None:
    spend = Spend()
    body = CountedBody(b'{"messages": []}', spend)
    async with aiohttp.ClientSession() as session:
        url = f"{sandbox.base_url}/chat/completions"
        asking = asyncio.create_task(session.post(url, data=body))
        await asyncio.sleep(0)
        assert (spend.calls, sandbox.stats()["requests"]) == (0, 0)
        await asking
        assert spend.calls == sandbox.stats()["requests"] == 1
        # Nobody listens there: nothing was sent.
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            closed = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.post(closed, data=CountedBody(b"{}", spend))
    assert spend.calls == 1


async def test_a_call_that_is_withdrawn_before_it_is_sent_is_none(sandbox: SandboxServer) -> None:
    spend = Spend()
    async with aiohttp.ClientSession() as session:
        for steps in range(12):
            url = f"{sandbox.base_url}/chat/completions"
            asking = asyncio.create_task(session.post(url, data=CountedBody(b"{}", spend)))
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    async with asyncio.timeout(180):
        while sandbox.stats()["requests"] != spend.calls:
            await asyncio.sleep(0.01)
