"""Every toggle works alone: the same job with each of them the other way gives the same profiles, and shows its effect.

One Redis and one sandbox serve all variants; each has an empty Redis database, a worker process and a consumer of its
own. What every variant is compared with is the same job without Redis, by `themes run`.
"""

import json
import os
import sqlite3
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
import zstandard
from redis import Redis

from config.settings import Settings, load
from scripts.demo import DESTINATIONS
from scripts.lib.demo_local import sandbox_in_thread
from scripts.lib.forks import THEMES
from scripts.lib.local_redis import LocalRedis
from scripts.lib.local_run import RunRequest, run
from tasks import keys
from tasks.inputs.reader import Reader
from tasks.jobs import registry as jobs
from tasks.queue.producer import enqueue
from tests.e2e.conftest import DEADLINE, until
from tests.support.forks import CELERY, Forked, Forks

#: Prompts of one destination, and destinations of the job.
PROMPTS, COUNT = 16, 18
#: Fields of a profile that say how and when it was made.
PROVENANCE: Final = ("stages", "usage", "elapsed_ms", "created_at")
SWITCHES: Final = (
    "enable_persistent_cache",
    "enable_work_stealing",
    "enable_streaming_results",
    "enable_result_compression",
    "enable_performance_profiling",
    "enable_intelligent_batching",
)


def _performance(name: str, value: str = "false") -> dict[str, str]:
    return {f"THEMES_PERFORMANCE_OPTIMIZATION__{name.upper()}": value}


ALL_OFF: Final = {
    variable: value
    for values in (
        *(_performance(name) for name in SWITCHES),
        {"THEMES_LLM__ADAPTIVE_CONCURRENCY": "false", "THEMES_LLM__LEARN_RATE_LIMIT": "false"},
    )
    for variable, value in values.items()
}


@dataclass
class Place:
    """What all variants share."""

    redis_url: str
    llm: str
    folder: Path

    @property
    def file(self) -> Path:
        """Some of the demo's destinations."""
        return self.folder / "destinations.csv"

    def ask(self, path: str, body: Any = None) -> Any:
        """Ask the sandbox about itself, or tell it something."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.llm.removesuffix("/v1") + path, data=data)  # noqa: S310
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=180) as answer:  # noqa: S310
            return json.load(answer)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One Redis and one sandbox."""
    folder = tmp_path_factory.mktemp("toggles")
    lines = DESTINATIONS.read_text("utf-8").splitlines(keepends=True)
    (folder / "destinations.csv").write_text("".join(lines[: COUNT + 1]), "utf-8")
    server = LocalRedis(folder / "redis", os.environ.get("THEMES_REDIS__SERVER", "auto"))
    with server, sandbox_in_thread("2ms") as llm:
        yield Place(server.url, llm, folder)


@dataclass
class Stack:
    """A worker and a consumer with some settings, and the job that they did."""

    place: Place
    folder: Path
    settings: Settings
    redis: Redis
    #: Its id, and first bytes of what the producer wrote before anybody read it.
    job_id: str = ""
    written: set[bytes] = field(default_factory=set)
    calls: int = 0

    def enqueue(self) -> str:
        """The place's destinations."""
        with Reader(self.place.file) as reader:
            return enqueue(reader, name="toggles", settings=self.settings, redis=self.redis).job_id

    def look_at_what_is_written(self) -> None:
        """Before a worker or a consumer takes it away."""
        chunks: Any = self.redis.hgetall(keys.chunks(self.job_id))
        entries: Any = self.redis.xrange(keys.RESULTS)
        self.written = {packed[:1] for packed in chunks.values() if len(packed) > 300}
        self.written |= {fields[b"b"][:1] for _, fields in entries if len(fields[b"b"]) > 300}

    def wait(self, job_id: str) -> jobs.JobStatus:
        """The job's status when it is done."""
        until("the job to end", lambda: jobs.status(self.redis, job_id).state == "done")
        status = jobs.status(self.redis, job_id)
        assert (status.done, status.failed) == (COUNT, 0)
        left = {key.decode().split(":")[3] for key in self.redis.scan_iter(f"{keys.job(job_id)}:*")}
        assert left <= {"events", "measurements"}
        assert job_id.encode() not in self.redis.smembers(keys.ACTIVE)
        return status

    def heartbeat(self) -> dict[str, str]:
        """The worker's report, once it has told of all that it did."""

        def told() -> dict[str, str] | None:
            raw: Any = self.redis.hgetall(keys.worker("w@here"))
            report = {name.decode(): value.decode() for name, value in raw.items()}
            return report if int(report.get("executed") or 0) >= COUNT else None

        found: dict[str, str] = until("the worker to report", told)
        return found

    def profiles(self) -> dict[str, Any]:
        """The job's profiles by destination."""
        return _profiles(self.folder / "var" / "themes.db", self.job_id)


def _profiles(database: Path, job_id: str) -> dict[str, Any]:
    """Profiles, but for how and when they were made."""
    with sqlite3.connect(database) as connection:
        query = "SELECT destination_id, status, model, stages, missing, payload FROM profiles WHERE job_id = ?"
        rows = connection.execute(query, (job_id,)).fetchall()
    found = {}
    for destination_id, status, model, stages, missing, payload in rows:
        assert len(json.loads(stages)) == PROMPTS
        found[destination_id] = [status, model, missing, json.loads(zstandard.decompress(payload))]
    return found


def _environment(place: Place, folder: Path, env: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("THEMES_", "OPENAI_", "REDIS"))}
    return {
        **kept,
        "THEMES_STATE_DIR": str(folder / "var"),
        "REDIS_URL": place.redis_url,
        "OPENAI_BASE_URL": place.llm,
        "OPENAI_API_KEY": "none",
        "THEMES_MODEL": "sandbox",
        **env,
    }


class Do(Protocol):
    """Do the job with some settings."""

    def __call__(self, env: dict[str, str], *, late_consumer: bool = False) -> Stack:
        """With a `late_consumer` every result waits for it."""


@pytest.fixture
def done(place: Place, tmp_path: Path, forks: Forks) -> Iterator[Do]:
    """Do the job with some settings; the worker and the consumer are there until the test ends."""
    redis = Redis.from_url(place.redis_url)
    processes: list[Forked] = []

    def start(env: dict[str, str], module: str, *arguments: str) -> None:
        with (tmp_path / "log").open("ab") as log, Path(os.devnull).open("rb") as nothing:
            process = forks.start(*arguments, env=env, stdin=nothing, stdout=log, stderr=log, module=module)
        processes.append(process)

    def do(env: dict[str, str], *, late_consumer: bool = False) -> Stack:
        full = _environment(place, tmp_path, env)
        redis.flushdb()
        place.ask("/stats/reset", {})
        stack = Stack(place, tmp_path, load(env=full), redis)
        stack.job_id = stack.enqueue()
        stack.look_at_what_is_written()
        # A stock Celery worker: no supervisor is needed here.
        start(full, *CELERY, "worker", "-n", "w@here", "--loglevel", "INFO")
        if late_consumer:
            until("every result to be on the stream", lambda: not redis.hlen(keys.chunks(stack.job_id)))
        start(full, THEMES, "consumer")
        status = stack.wait(stack.job_id)
        stack.calls = place.ask("/stats")["requests"]
        assert status.llm_calls == stack.calls
        return stack

    yield do
    place.ask("/faults", [])
    for process in processes:
        process.kill()
        process.wait(DEADLINE)
    redis.close()


@pytest.fixture(scope="module")
def reference(place: Place) -> dict[str, Any]:
    """The profiles of the job without Redis, everything on."""
    return _run(place, place.folder / "reference", {})


def _run(place: Place, folder: Path, env: dict[str, str]) -> dict[str, Any]:
    """The profiles of a job without Redis."""
    settings = load(env=_environment(place, folder, {"THEMES_REDIS__ENABLED": "false", **env}))
    ran = run(settings, RunRequest(file=str(place.file)))
    assert ran.code == 0
    assert ran.job is not None
    found = _profiles(folder / "var" / "themes.db", ran.job.job_id)
    assert len(found) == COUNT
    return found


def _cached(redis: Redis) -> list[bytes]:
    """The keys of cached completions."""
    return [key for key in redis.scan_iter("themes:cache:*") if not key.startswith(b"themes:cache:profile:")]


def test_all_on(done: Do, reference: dict[str, Any]) -> None:
    stack = done({})
    assert stack.profiles() == reference
    assert stack.calls == COUNT * PROMPTS
    assert len(_cached(stack.redis)) == stack.calls
    firsts = {stack.redis.getrange(key, 0, 0) for key in _cached(stack.redis)}
    assert b"\x11" in firsts, "zstd"
    assert stack.written == {b"\x01"}, "chunks and entries are compressed"
    assert stack.redis.exists(keys.events(stack.job_id))
    assert json.loads(stack.heartbeat()["profile"])["spans"]
    again = stack.enqueue()
    assert stack.wait(again).llm_calls == 0, "the cache answers"
    assert stack.place.ask("/stats")["requests"] == stack.calls


def test_enable_persistent_cache_off_keeps_nothing_in_redis_and_asks_again(done: Do, reference: dict[str, Any]) -> None:
    # Nor in memory, which would answer the second job of the same process.
    stack = done(_performance("enable_persistent_cache") | _performance("max_memory_cache_mb", "0"))
    assert stack.profiles() == reference
    assert _cached(stack.redis) == []
    assert list(stack.redis.scan_iter("themes:flight:*")) == []
    assert stack.wait(stack.enqueue()).llm_calls == COUNT * PROMPTS
    assert stack.place.ask("/stats")["requests"] == 2 * stack.calls
    assert _cached(stack.redis) == []


def test_enable_work_stealing_off_steals_nothing(done: Do, reference: dict[str, Any]) -> None:
    stack = done(_performance("enable_work_stealing"))
    assert stack.profiles() == reference
    report = stack.heartbeat()
    assert (report["stolen"], report["shared"]) == ("0", "0")
    lanes = json.loads(report["lane_statistics"])
    assert sum(lane["executed"] for lane in lanes) == COUNT


def test_enable_streaming_results_off_makes_no_event_stream(done: Do, reference: dict[str, Any]) -> None:
    stack = done(_performance("enable_streaming_results"))
    assert stack.profiles() == reference
    assert list(stack.redis.scan_iter("themes:job:*:events")) == []


def test_enable_result_compression_off_stores_everything_as_it_is(done: Do, reference: dict[str, Any]) -> None:
    stack = done(_performance("enable_result_compression"))
    assert stack.profiles() == reference
    assert stack.written == {b"\x00"}
    assert {stack.redis.getrange(key, 0, 0) for key in _cached(stack.redis)} == {b"\x10"}


def test_enable_performance_profiling_off_measures_no_span(done: Do, reference: dict[str, Any]) -> None:
    stack = done(_performance("enable_performance_profiling"))
    assert stack.profiles() == reference
    assert json.loads(stack.heartbeat()["profile"] or "{}") == {}
    assert not stack.redis.exists(keys.measurements(stack.job_id))


def test_enable_intelligent_batching_off_asks_about_all_themes_at_once_whatever_the_batch_size(
    done: Do, reference: dict[str, Any]
) -> None:
    stack = done(_performance("enable_intelligent_batching") | _performance("theme_batch_size", "8"))
    assert stack.profiles() == reference
    assert stack.calls == COUNT * PROMPTS


def test_a_pool_of_one_connection_has_one_call_under_way_at_most(done: Do, reference: dict[str, Any]) -> None:
    stack = done(_performance("llm_connection_pool_size", "1") | _performance("llm_connection_pool_min_size", "1"))
    assert stack.profiles() == reference
    assert stack.place.ask("/stats")["max_in_flight"] == 1


@pytest.mark.parametrize(("size", "least", "most"), [(100, 1, 2), (1, 3, COUNT)])
def test_database_batch_size_is_what_a_transaction_holds(
    size: int, least: int, most: int, done: Do, reference: dict[str, Any]
) -> None:
    # All results wait. Behind such a backlog a batch grows, up to eight times the size.
    stack = done(_performance("database_batch_size", str(size)), late_consumer=True)
    assert stack.profiles() == reference
    with sqlite3.connect(stack.folder / "var" / "themes.db") as database:
        ((batches,),) = database.execute("SELECT COUNT(DISTINCT updated_at) FROM profiles")
    assert least <= batches <= most


def test_hedge_on_gives_the_same_profiles(done: Do, reference: dict[str, Any]) -> None:
    stack = done({"THEMES_LLM__HEDGE": "true"})
    assert stack.profiles() == reference
    assert stack.calls >= COUNT * PROMPTS


@pytest.mark.parametrize("adapts", [True, False])
def test_after_a_429_each_of_adaptive_concurrency_and_learn_rate_limit_does_its_part_only_where_it_is_on(
    adapts: bool, done: Do, reference: dict[str, Any], place: Place
) -> None:
    place.ask("/faults", ["429=0.05,retry_after=0.05"])
    one, other = str(adapts).lower(), str(not adapts).lower()
    stack = done({"THEMES_LLM__ADAPTIVE_CONCURRENCY": one, "THEMES_LLM__LEARN_RATE_LIMIT": other})
    assert stack.profiles() == reference
    assert place.ask("/stats")["by_status"]["429"] > 0
    (route,) = json.loads(stack.heartbeat()["pool"])["routes"].values()
    assert (route["cuts"] > 0) == adapts
    assert bool(list(stack.redis.scan_iter("themes:limit:*:learnt"))) != adapts


def test_all_off(done: Do, reference: dict[str, Any]) -> None:
    stack = done(ALL_OFF)
    assert stack.profiles() == reference
    assert _cached(stack.redis) == []
    assert not stack.redis.exists(keys.events(stack.job_id))
    assert stack.written == {b"\x00"}


@pytest.mark.parametrize("name", [*SWITCHES, "all"])
def test_without_redis_each_toggle_off_gives_the_same_profiles(
    name: str, place: Place, reference: dict[str, Any], tmp_path: Path
) -> None:
    off = ALL_OFF if name == "all" else _performance(name)
    place.ask("/stats/reset", {})
    assert _run(place, tmp_path / "run", off) == reference
    assert place.ask("/stats")["requests"] == COUNT * PROMPTS
    with sqlite3.connect(tmp_path / "run" / "var" / "run.db") as file:
        firsts = file.execute("SELECT DISTINCT substr(stored, 1, 1) FROM completions").fetchall()
        kept = file.execute("SELECT COUNT(*) FROM completions").fetchall()[0][0]
    if name in {"enable_persistent_cache", "all"}:
        assert kept == 0
    else:
        assert kept == COUNT * PROMPTS
        assert ((b"\x11",) in firsts) == (name != "enable_result_compression")
