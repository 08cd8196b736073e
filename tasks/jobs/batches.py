"""A job's batches at providers, as its hash in Redis has them: one field a batch, and how many questions wait.

The workers write it (`workers.llm.batches`); a batch stays in it after its end, for as long as the job does.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, Literal

import msgspec
from redis import Redis

from tasks import keys
from tasks.jobs.budget import BudgetState, dollars
from tasks.readings import replies_of, whole_amounts
from tasks.texts import count, duration, one_line
from tasks.waits import SAID_CHARACTERS, Wait

#: forming: questions are gathered; ready: nothing is sent; uploaded: the file is there; creating: the provider may
#: have it; running: it has; reading: it has ended, and what it answered is read; ended.
BatchState = Literal["forming", "ready", "uploaded", "creating", "running", "reading", "ended"]
#: Begins the name under which the books have what a batch has cost, where others have a worker's.
BOOKED_BY: Final = "batch-"
#: Requests of the mean price, at least, that a budget has room for where it keeps none from being sent.
SEVERAL: Final = 2
#: States in which the provider may work on it.
UNDER_WAY: Final = frozenset({"creating", "running"})


class Batch(msgspec.Struct, frozen=True, omit_defaults=True):
    """One batch. `tag` is our name for it, which the provider keeps too; times are in seconds since 1970."""

    tag: str
    job_id: str
    #: Which endpoint's, and for which model, by our names.
    endpoint: str
    model: str
    formed_at: float
    state: BatchState = "forming"
    requests: int = 0
    #: About how large its file is.
    size_bytes: int = 0
    answered: int = 0
    #: Ended without an answer: refused, failed, expired or cancelled.
    unanswered: int = 0
    #: As the provider counts them while it works.
    done_there: int = 0
    file_id: str = ""
    #: Its name there; empty until that is known.
    id: str = ""
    #: When it was asked for last.
    asked_at: float = 0.0
    ended_at: float = 0.0
    #: How it ended there: completed, failed, expired, cancelled.
    end: str = ""
    #: Files with what came of it.
    results: tuple[str, ...] = ()
    #: Why it was told to stop; empty while it is not.
    stop: str = ""
    #: What the provider said last, where something is wrong.
    said: str = ""
    #: How its lines were asked (`workers.llm.endpoints.dialect`).
    asked_as: str = ""
    #: What its answers have saved against standard, in US dollars; None where a price is not known.
    saved_usd: float | None = 0.0

    @property
    def is_sent(self) -> bool:
        """Whether the provider has it, may have it, or had it."""
        return bool(self.id) or self.state == "creating"


class Batches(msgspec.Struct, frozen=True):
    """A job's batches in sum: of requests, how many wait for a batch, are submitted, answered, and never were."""

    waiting: int = 0
    submitted: int = 0
    answered: int = 0
    unanswered: int = 0
    #: Batches that have not ended, and that have.
    open: int = 0
    ended: int = 0
    expired: int = 0
    #: When the oldest open one was asked for; None where none is open.
    oldest_at: float | None = None
    saved_usd: float | None = 0.0
    #: What a provider says, where a batch does not go on.
    said: str = ""
    #: Of the open ones, those that a provider has: how many, their requests, how many of these it has done, and where.
    under_way: int = 0
    requests: int = 0
    done_there: int = 0
    endpoints: tuple[str, ...] = ()
    #: Requests of batches that expired before they were answered.
    expired_requests: int = 0
    #: What of the job's budget is left, in US dollars, where that is too little for what waits: all else is reserved.
    short_usd: float | None = None

    @property
    def running(self) -> int:
        """Requests in batches that have no end yet."""
        return self.submitted - self.answered - self.unanswered

    @property
    def is_active(self) -> bool:
        """Whether something waits for a batch, or a batch for its end."""
        return bool(self.waiting or self.open)

    def __add__(self, other: "Batches") -> "Batches":
        at = [one.oldest_at for one in (self, other) if one.oldest_at is not None]
        return Batches(
            **{name: getattr(self, name) + getattr(other, name) for name in _SUMS},
            oldest_at=min(at, default=None),
            saved_usd=_dollars([self.saved_usd, other.saved_usd]),
            said=self.said or other.said,
            endpoints=tuple(sorted({*self.endpoints, *other.endpoints})),
        )

    @property
    def wait(self) -> Wait | None:
        """What a job waits for that has batches; None where all of them have ended."""
        endpoints = ", ".join(self.endpoints)
        said = f"the provider works on batches at {endpoints}" if self.under_way else "its questions wait for a batch"
        if self.short_usd is not None:
            said = f"{said}; {self._short()}"
        return Wait("batch", endpoints, self.oldest_at or 0.0, None, said) if self.is_active else None

    def age_seconds(self, now: float | None = None) -> float | None:
        """How long ago the oldest open batch was asked for; None where none is open."""
        now = time.time() if now is None else now
        return None if self.oldest_at is None else max(0.0, now - self.oldest_at)

    def clause(self, now: float | None = None) -> str:
        """What a job waits for, for a sentence."""
        if not self.under_way:
            return f"questions wait for a batch: {self.waiting:,} are to be sent"
        at = f"at {', '.join(self.endpoints)}"
        short = "" if self.short_usd is None else f"; {self._short()}"
        return f"waits for batches {at}: the oldest was sent {duration(self.age_seconds(now))} ago{short}"

    def _short(self) -> str:
        return (
            f"the budget has {dollars(self.short_usd or 0.0)} that is neither spent nor reserved, so {self.waiting:,} "
            "wait for what comes back of it: a larger one (themes resume JOB --budget USD) sends them sooner"
        )

    def beside(self, budget: BudgetState | None) -> "Batches":
        """The same, with what a budget has left where that keeps questions from being sent.

        Most of what is reserved comes back, so a small budget goes through in small batches, one after the other.
        """
        if budget is None or not (self.waiting and self.requests and budget.reserved_usd):
            return self
        left = max(0.0, budget.limit_usd - budget.spent_usd - budget.reserved_usd)
        is_short = left < budget.reserved_usd / self.requests * SEVERAL
        return msgspec.structs.replace(self, short_usd=round(left, 9)) if is_short else self

    def format(self, now: float | None = None) -> str:
        """All of it in one line for people."""
        failed, there = self.unanswered - self.expired_requests, count(self.requests, "request")
        if self.done_there:
            there += f"; {self.done_there:,} done there"
        parts = (
            (self.under_way, f"{self.under_way:,} open ({there}), oldest {duration(self.age_seconds(now))}"),
            (self.ended, f"{self.ended:,} ended ({count(self.answered, 'request')} answered)"),
            (self.waiting, f"{self.waiting:,} {'waits' if self.waiting == 1 else 'wait'} to be sent"),
            (self.expired_requests, f"{self.expired_requests:,} expired"),
            (failed > 0, f"{failed:,} failed there"),
            ((self.saved_usd or 0.0) > 0, f"{dollars(self.saved_usd or 0.0)} saved"),
            (self.short_usd is not None, self._short()),
            (self.said, f"last trouble: {self.said}"),
        )
        return f"Batches: {'; '.join(words for is_so, words in parts if is_so) or 'none is sent yet'}"


#: What of two sums is added up.
_SUMS: Final = (
    "waiting", "submitted", "answered", "unanswered", "open", "ended", "expired", "under_way", "requests", "done_there",
    "expired_requests",
)  # fmt: skip


def summed(batches: Iterable[Batch], waiting: int) -> Batches | None:
    """All batches of a job in sum; None where it has none, and nothing waits for one."""
    every = list(batches)
    if not every and not waiting:
        return None
    opened = [one for one in every if one.state != "ended"]
    sent = [one for one in every if one.is_sent]
    there = [one for one in opened if one.is_sent]
    return Batches(
        waiting=waiting + sum(one.requests for one in opened if not one.is_sent),
        submitted=sum(one.requests for one in sent),
        answered=sum(one.answered for one in sent),
        unanswered=sum(one.unanswered for one in sent),
        open=len(opened),
        ended=len(every) - len(opened),
        expired=sum(one.end == "expired" for one in every),
        oldest_at=min((one.asked_at or one.formed_at for one in opened), default=None),
        saved_usd=_dollars([one.saved_usd for one in every]),
        said=one_line(next((one.said for one in opened if one.said), ""), SAID_CHARACTERS),
        under_way=len(there),
        requests=sum(one.requests for one in there),
        done_there=sum(one.done_there for one in there),
        endpoints=tuple(sorted({one.endpoint for one in there})),
        expired_requests=sum(one.unanswered for one in every if one.end == "expired"),
    )


def _dollars(amounts: list[float | None]) -> float | None:
    """A sum; None where one of them is not known."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None


def seconds_under_way(batches: Iterable[Batch], now: float) -> float:
    """The time in which a provider had at least one of these batches."""
    spans = sorted((one.asked_at, one.ended_at or now) for one in batches if one.is_sent)
    ends = accumulate((end for _, end in spans), max, initial=0.0)
    return sum(max(0.0, end - max(begin, before)) for (begin, end), before in zip(spans, ends, strict=False))


def read(fields: Any) -> list[Batch]:
    """The batches in a job's hash, in the order in which they were formed; what cannot be read is none."""
    found = []
    for value in fields.values() if isinstance(fields, Mapping) else ():
        try:
            found.append(msgspec.json.decode(value, type=Batch))
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            continue  # written by a newer version, or by another program
    return sorted(found, key=lambda one: (one.formed_at, one.tag))


def of_job(redis: Redis, job_id: str) -> Batches | None:
    """A job's batches in sum, read from Redis; None where it has none."""
    (found,) = of_jobs(redis, [job_id])
    return found


def of_jobs(redis: Redis, job_ids: Sequence[str]) -> list[Batches | None]:
    """As `of_job` for each of these jobs; one command where none of them has any."""
    hashes = [key_of(job_id) for job_id in job_ids for key_of in (keys.batches, keys.batch_shelves)]
    if not hashes or not redis.exists(*hashes):
        return [None] * len(job_ids)
    replies = replies_of(redis, hashes)
    return [from_replies(fields, shelves) for fields, shelves in zip(replies[::2], replies[1::2], strict=True)]


def from_replies(fields: Any, shelves: Any) -> Batches | None:
    """The sum, out of Redis's replies for the two hashes of a job."""
    return summed(read(fields), sum(whole_amounts(shelves).values()))
