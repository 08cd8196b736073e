"""A job's batches at providers, as its hash in Redis has them: one field a batch, and how many questions wait.

The workers write it (`workers.llm.batches`); a batch stays in it after its end, for as long as the job does.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec
from redis import Redis

from tasks import keys
from tasks.readings import whole_amounts

#: forming: questions are gathered; ready: nothing is sent; uploaded: the file is there; creating: the provider may
#: have it; running: it has; reading: it has ended, and what it answered is read; ended.
BatchState = Literal["forming", "ready", "uploaded", "creating", "running", "reading", "ended"]
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
    #: What its answers have saved against standard, in US dollars; None where a price is not known.
    saved_usd: float | None = 0.0


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

    @property
    def running(self) -> int:
        """Requests in batches that have no end yet."""
        return self.submitted - self.answered - self.unanswered


def summed(batches: Iterable[Batch], waiting: int) -> Batches | None:
    """All batches of a job in sum; None where it has none, and nothing waits for one."""
    every = list(batches)
    if not every and not waiting:
        return None
    opened = [one for one in every if one.state != "ended"]
    sent = [one for one in every if one.asked_at]
    saved = [one.saved_usd for one in every]
    return Batches(
        waiting=waiting + sum(one.requests for one in opened if not one.asked_at),
        submitted=sum(one.requests for one in sent),
        answered=sum(one.answered for one in sent),
        unanswered=sum(one.unanswered for one in sent),
        open=len(opened),
        ended=len(every) - len(opened),
        expired=sum(one.end == "expired" for one in every),
        oldest_at=min((one.asked_at or one.formed_at for one in opened), default=None),
        saved_usd=None if None in saved else sum(one or 0.0 for one in saved),
        said=next((one.said for one in opened if one.said), ""),
    )


def read(fields: Mapping[Any, Any]) -> list[Batch]:
    """The batches in a job's hash, in the order in which they were formed; what cannot be read is none."""
    found = []
    for value in fields.values():
        try:
            found.append(msgspec.json.decode(value, type=Batch))
        except msgspec.DecodeError:
            continue  # written by a newer version, or by another program
    return sorted(found, key=lambda one: (one.formed_at, one.tag))


def of_job(redis: Redis, job_id: str) -> Batches | None:
    """A job's batches in sum, read from Redis; None where it has none."""
    with redis.pipeline(transaction=False) as pipeline:
        pipeline.hgetall(keys.batches(job_id))
        pipeline.hgetall(keys.batch_shelves(job_id))
        fields, shelves = pipeline.execute(raise_on_error=False)
    return from_replies(fields, shelves)


def from_replies(fields: Any, shelves: Any) -> Batches | None:
    """The sum, out of Redis's replies for the two hashes of a job."""
    known = fields if isinstance(fields, Mapping) else {}
    return summed(read(known), int(sum(whole_amounts(shelves).values())))
