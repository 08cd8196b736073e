"""One small job from its producer's first command to its last row, with one exact call failing: about a second each.

Redis, the LLM and the proxy stay; every run has roles of its own, an empty Redis and a new database.
"""

import json
import shutil
import sqlite3
import urllib.request
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

from scripts.lib.processes import spawn, stop, themes
from tests.faults import prompts
from tests.faults.proxy import Mode, Proxy
from tests.faults.roles import Roles
from tests.faults.stack import QUICK, Server, free_port, is_up, until
from tests.faults.statements import read

Kind = Literal["redis", "sqlite", "http"]
ROLES: Final = ("worker", "consumer", "producer")
DESTINATIONS: Final = 30
#: Seconds after which a run counts as stuck.
STUCK_SECONDS: Final = 60.0
#: How a call of each kind can fail.
MODES: Final[dict[str, tuple[Mode, ...]]] = {
    "redis": tuple(Mode),
    "http": tuple(Mode),
    # A database has no connection to lose: `LOST_AFTER` is an error although the statement took effect.
    "sqlite": (Mode.REFUSED, Mode.LOST_AFTER, Mode.KILLED_BEFORE, Mode.KILLED_AFTER),
}
_SETTINGS: Final = QUICK | {
    "THEMES_WORK__LEASE_SECONDS": "1",
    "THEMES_WORK__HEARTBEAT_SECONDS": "0.3",
    "THEMES_WORK__SWEEP_INTERVAL_SECONDS": "0.1",
    "THEMES_WORK__WEDGED_AFTER_SECONDS": "3600",
    "THEMES_LLM__FLIGHT_LEASE_SECONDS": "0.5",
    "THEMES_PERFORMANCE_OPTIMIZATION__RETRY_BASE_DELAY": "0.02",
    "THEMES_DATABASE__FLUSH_INTERVAL_SECONDS": "0.03",
}
#: What the LLM is asked with.
QUESTION: Final = "POST /v1/chat/completions"
#: As the sandbox and the settings of a job that is bought in batches.
_BATCHES: Final = ("--batches", "delay=0.1")
_BATCHING: Final = {
    "THEMES_LLM__TIER": "batch",
    "THEMES_LLM__BATCH_FORM_SECONDS": "0.1",
    "THEMES_LLM__BATCH_POLL_SECONDS": "0.2",
    "THEMES_LLM__BATCH_SETTLE_SECONDS": "0.5",
    "THEMES_LLM__PRICES": "{sandbox: {input_usd: 1, output_usd: 2}}",
    "THEMES_TEAMS__BUDGETS": "{lab: {usd_per_day: 100}}",
    "FAULT_TEAM": "lab",
}
#: What a call of each tier costs of the list's price.
_FACTORS: Final = {"flex": 0.5, "batch": 0.5}


#: A job's profiles, its failures, destinations with both, what its row says, and what its destinations add up to.
_JUDGING: Final = (
    "SELECT count(*) FROM profiles WHERE job_id = ?",
    "SELECT count(*) FROM failures WHERE job_id = ?",
    "SELECT count(*) FROM profiles JOIN failures USING (job_id, destination_id) WHERE job_id = ?",
    "SELECT total, done, failed, llm_calls FROM jobs WHERE job_id = ?",
    "SELECT count(*), sum(state = 'done'), sum(state = 'failed'), sum(llm_calls) FROM destinations WHERE job_id = ?",
)


@dataclass(frozen=True, slots=True)
class Moment:
    """One call of one role, and how it fails."""

    kind: Kind
    role: str
    nth: int
    mode: Mode

    def __str__(self) -> str:
        return f"{self.kind}/{self.role}/{self.nth}/{self.mode.value.replace(' ', '-')}"

    @classmethod
    def of(cls, text: str) -> "Moment":
        """Read what `str` wrote."""
        kind, role, nth, mode = text.split("/")
        return cls(kind, role, int(nth), Mode(mode.replace("-", " ")))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a run.

    `happened`: the call was reached; `stuck`: the job did not end; `double`: destinations that have both a profile and
    a failure; `unbooked`: calls that were sent and are in no job's books, below 0 when some are in them twice;
    `deaths`: of the worker.
    """

    happened: bool
    stuck: bool
    lost: int
    double: int
    failures: int
    unbooked: int
    deaths: int
    wrong_counters: bool = False
    #: Prompts that were paid for more than once, where they were bought in batches.
    bought_twice: int = 0
    #: US dollars by which the budgets of the job and its team differ from the bill; what is still reserved counts too.
    wrong_money: float = 0.0

    @property
    def is_good(self) -> bool:
        """Whether every destination has exactly one row, no call is booked twice, and the counters agree."""
        wrong = self.stuck or self.lost or self.double or self.failures or self.wrong_counters or self.bought_twice
        wrong = wrong or abs(self.wrong_money) > 1e-6  # a cent of a cent
        return not wrong and self.unbooked >= 0

    @property
    def is_dear(self) -> bool:
        """Whether a call is in no books."""
        return self.unbooked > 0


class Lab:
    """What stays between runs; a context manager."""

    def __init__(self, folder: Path, *, in_batches: bool = False) -> None:
        self._folder = folder
        self._in_batches = in_batches
        folder.mkdir(parents=True, exist_ok=True)
        self._exit = ExitStack()
        self._number = 0

    def __enter__(self) -> Self:
        self._proxy = self._exit.enter_context(Proxy())
        self._roles = self._exit.enter_context(Roles())
        self.redis = Server(self._folder, aof=False)
        self._exit.callback(self.redis.kill)
        self._llm_port = free_port()
        options = ("--port", str(self._llm_port), "--latency", "5ms", *(_BATCHES if self._in_batches else ()))
        llm = spawn(themes("sandbox-llm", *options), log=self._folder / "llm.log")
        self._exit.callback(stop, [llm], seconds=5)
        until("the sandbox", lambda: is_up(self._llm_port))
        self._doors = {role: self._proxy.listen(role, self.redis.port) for role in ROLES}
        self._doors["llm"] = self._proxy.listen("llm", self._llm_port, "http")
        self._prompts = prompts.write(self._folder / "prompts")
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def census(self) -> dict[tuple[Kind, str], int]:
        """Calls of each kind and role in a run that nothing disturbs."""
        verdict = self.run(None)
        assert verdict.is_good, verdict
        counted: dict[tuple[Kind, str], int] = {("redis", role): self._commands[role] for role in ROLES}
        counted["http", "worker"] = self._commands["llm"]
        counted["sqlite", "consumer"] = read(self._counts)[0]
        return counted

    def run(self, moment: Moment | None) -> Verdict:
        """One job with one failing call."""
        self._prepare(moment)
        for role in ("consumer", "worker", "producer"):
            self._roles.start(role, role, self._env(role, moment), self._state / f"{role}.log")
        try:
            is_stuck = not self._ends()
            return self._judge(moment, is_stuck=is_stuck)
        finally:
            self._commands = {door: self._proxy.commands(door) for door in self._doors}
            self._roles.end_all()

    def logs(self) -> Path:
        """Where the roles of the last run have written."""
        return self._state

    def _prepare(self, moment: Moment | None) -> None:
        self._number += 1
        self._state = self._folder / f"run{self._number}"
        self._state.mkdir()
        shutil.rmtree(self._folder / f"run{self._number - 1}", ignore_errors=True)
        self._counts = self._state / "statements"
        self._job = self._state / "job"
        (self._state / "destinations").write_text("".join(f"City {number}\n" for number in range(DESTINATIONS)))
        with self.redis.client() as redis:
            redis.flushall()
        for door in self._doors:
            self._proxy.arm(door)
        self._asked_before, self._bill_before = self._asked(), self._bill()
        if moment and moment.kind != "sqlite":
            self._proxy.arm("llm" if moment.kind == "http" else moment.role, mode=moment.mode, nth=moment.nth)

    def _env(self, role: str, moment: Moment | None) -> dict[str, str]:
        env = _SETTINGS | {
            "REDIS_URL": f"redis://127.0.0.1:{self._doors[role]}/1",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self._doors['llm']}/v1",
            "OPENAI_API_KEY": "none",
            "THEMES_MODEL": "sandbox",
            "THEMES_STATE_DIR": str(self._state),
            "THEMES_PIPELINE__PROMPTS_DIR": str(self._prompts),
            "FAULT_DESTINATIONS": str(self._state / "destinations"),
            "FAULT_JOB": str(self._job),
            "FAULT_STATEMENTS": str(self._counts),
            "FAULT_NTH": "0",
        }
        env |= _BATCHING if self._in_batches else {}
        if moment and moment.kind == "sqlite":
            env |= {"FAULT_NTH": str(moment.nth), "FAULT_MODE": moment.mode.value}
        return env

    def _ends(self) -> bool:
        with self.redis.client() as redis:

            def is_done() -> bool:
                return self._job.exists() and redis.hget(f"themes:job:{self._job.read_text()}", "state") == b"done"

            try:
                until("the job to be done", is_done, STUCK_SECONDS)
            except AssertionError:
                return False
            return True

    def _happened(self, moment: Moment | None) -> bool:
        if moment is None:
            return True
        if moment.kind == "sqlite":
            return read(self._counts)[1]
        return bool(self._proxy.sprung("llm" if moment.kind == "http" else moment.role))

    def _judge(self, moment: Moment | None, *, is_stuck: bool) -> Verdict:
        happened, deaths = self._happened(moment), self._roles.deaths("worker")
        if is_stuck:
            return Verdict(happened, stuck=True, lost=0, double=0, failures=0, unbooked=0, deaths=deaths)
        job_id = self._job.read_text()
        (profiles,), (failures,), (both,), job, sums = (self._query(sql, job_id) for sql in _JUDGING)
        (calls,) = self._query("SELECT sum(llm_calls) FROM jobs WHERE job_id != ?", "")
        return Verdict(
            happened,
            stuck=False,
            lost=DESTINATIONS - (profiles + failures - both),
            double=both,
            failures=failures,
            unbooked=self._asked() - self._asked_before - calls,
            deaths=deaths,
            wrong_counters=job != sums,
            bought_twice=self._bought_twice(),
            wrong_money=self._wrong_money(job_id),
        )

    def _asked(self) -> int:
        """Calls that were sent in this run, or lines of batches that the LLM has answered since it was started."""
        if not self._in_batches:
            return self._proxy.by_name("llm").get(QUESTION, 0)
        return sum(one["requests"] for one in self._billed().values())

    def _bought_twice(self) -> int:
        """Answers beyond one a prompt. Every run asks the same prompts."""
        if not self._in_batches:
            return 0
        return self._asked() - self._asked_before - DESTINATIONS * prompts.CALLS

    def _billed(self) -> dict[str, dict[str, int]]:
        """What the LLM has answered since it was started, by tier."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._llm_port}/stats", timeout=60) as answer:
            billed: dict[str, dict[str, int]] = json.load(answer)["billed"]
        return billed

    def _bill(self) -> float:
        """US dollars, by the prices of the settings; of batches alone."""
        return sum(
            _FACTORS.get(tier, 1.0) * (one["prompt_tokens"] + 2 * one["completion_tokens"]) / 1e6
            for tier, one in (self._billed() if self._in_batches else {}).items()
        )

    def _wrong_money(self, job_id: str) -> float:
        if not self._in_batches:
            return 0.0
        with self.redis.client() as redis:
            job, team = redis.hgetall(f"themes:job:{job_id}:budget"), redis.hgetall("themes:team:lab")
        spent = int(job[b"spent"]), sum(int(amount) for name, amount in team.items() if len(name) == len("2026-11-29"))
        held = sum(int(amount) for name, amount in (*job.items(), *team.items()) if name.endswith(b":reserved"))
        bill = self._bill() - self._bill_before
        return max((one / 1e9 - bill for one in spent), key=abs) + held / 1e9

    def _query(self, sql: str, *values: Any) -> Any:
        with closing(sqlite3.connect(self._state / "themes.db", timeout=180)) as database:
            return database.execute(sql, values).fetchone()
