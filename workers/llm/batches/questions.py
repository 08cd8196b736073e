"""What is asked in batches: questions, who asks them, and what a store of them can do.

    asked -> waits on its job's shelf -> line of a batch -> answered, or asked otherwise
                       ^                      |
                       +---- refused, expired-+

A question is known by its key in the cache, so equal prompts are one line. Its destination is parked: the chunk waits
without a worker until each of its questions has an end, and then runs again, finding what it has asked before.
"""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, Literal, Protocol, Self

import msgspec

from tasks.frames import CODECS, unpacked
from tasks.jobs.batches import Batch
from workers.llm.endpoints.answers import AnswerSchema
from workers.llm.endpoints.prompt import Prompt
from workers.llm.funds import Refused

log = logging.getLogger("themes.batches")

#: Tries of a question in batches; then it is asked otherwise.
TRIES: Final = 2
#: Lines that are moved, read or written in one step of a store.
SLICE: Final = 200
#: Seconds that a form stays after it was asked last, and after which a process writes it again.
FORM_SECONDS, FORM_AGAIN_SECONDS = 40 * 86_400, 86_400
#: Seconds for which it is known that batches did not answer a question.
LATE_SECONDS: Final = 86_400
#: Bytes of a line beside its texts: names, roles, escapes.
LINE_BYTES: Final = 1_000
#: What a store answers to a question that batches do not answer, to one whose answer the cache has, and to one that it
#: has no room for now.
LATE, IN_CACHE, FULL = b"", b"=", b"?"
#: Begins what is kept of a question without a usable answer: the job and attempt that it holds for, and the error.
FAILED: Final = b"!"

#: What becomes of a line: it has an answer; it waits for another batch, which counts as a try or not (`anew`); it is
#: asked otherwise; nothing (`gone`), so that whoever still wants it asks again.
Ending = Literal["answered", "again", "anew", "late", "gone"]


class Form(msgspec.Struct, frozen=True):
    """What all prompts of one version have in common, stored once."""

    digest: str
    system: str
    instructions: str
    schema_name: str
    schema: dict[str, Any]


class Question(msgspec.Struct, frozen=True, array_like=True):
    """A prompt that waits for a batch. `worst_nano` is the most that it can cost there; 0 without a price."""

    form: str
    stage: str
    data: str
    max_tokens: int
    worst_nano: int
    size_bytes: int

    def prompt(self, form: Form, schema: AnswerSchema) -> Prompt:
        return Prompt(
            stage=self.stage,
            version="",
            system=form.system,
            instructions=form.instructions,
            data=self.data,
            identity="",
            schema=schema,
            max_tokens=self.max_tokens,
        )


class Ask(msgspec.Struct, frozen=True):
    """A question as a store gets it. `shelf` is `endpoint/model`, by our names.

    Where the cache has `cache_key` by now, that is its answer; empty: the answer is to be a new one. The chunk waits
    for it; `payer`, `DESTINATION ATTEMPT`, pays for it where it is the first to ask.
    """

    key: str
    cache_key: str
    shelf: str
    question: Question
    job_id: str
    chunk_id: str
    payer: str
    #: Whether the job's deadline has passed: then nothing new waits for a batch.
    is_late: bool = False


class Kept(msgspec.Struct, frozen=True):
    """What takes the place of an answer: a completion in the cache, empty where it has that already.

    The answer becomes `mark`, or is forgotten where that is empty.
    """

    key: str
    cache_key: str = ""
    stored: bytes = b""
    mark: bytes = b""


class Line(msgspec.Struct, frozen=True):
    """A line of a batch. `payer` is the destination and the attempt that it is booked under."""

    key: str
    question: Question | None
    payer: str
    tries: int

    @classmethod
    def of(cls, key: str, payer: str, packed: bytes | None, tries: int) -> Self:
        """A line as it was stored; one that another version has stored is without its question."""
        question = None
        if packed:
            try:
                question = msgspec.msgpack.decode(packed, type=Question)
            except msgspec.DecodeError as exc:
                log.warning("action=batch_question_unreadable key=%s… is asked otherwise: %s", key[:12], exc)
        return cls(key, question, payer, tries)


class Settled(msgspec.Struct, frozen=True):
    """What a line came to: the answer's body, what it cost, and the bill to be booked for its payer."""

    key: str
    end: Ending
    answer: bytes = b""
    cost_nano: int = 0
    bill: bytes = b""
    #: Against standard; None where a price is not known.
    saved_usd: float | None = 0.0


class JobState(msgspec.Struct, frozen=True):
    """What decides how a job's batches go on."""

    job_id: str
    batches: Sequence[Batch]
    #: Questions that wait, by shelf.
    shelves: Mapping[str, int]
    is_over: bool
    is_paused: bool
    deadline_at: float | None


class Taken(msgspec.Struct, frozen=True):
    """A batch with the lines that have moved into it; `stopped` says why no more did, where the shelf is not empty.

    `refused`: a budget does not last, and how; `waits`: it may, once calls under way have ended.
    """

    batch: Batch
    count: int
    stopped: Literal["", "full", "waits", "refused"] = ""
    refused: Refused | None = None


class LeaseLostError(Exception):
    """Another process keeps the batches now: nothing was written."""


class BatchStore(Protocol):
    """Questions and batches, where a kill cannot take them. Each method is one step that is done whole or not at all.

    `ask` and `keep` raise `StoreAwayError` while they cannot be taken. Writing a batch down raises `LeaseLostError`
    where another process has taken over.
    """

    async def ask(self, asks: Sequence[Ask], forms: Sequence[Form], *, most: int) -> list[bytes | None]:
        """Of each question of a chunk what is known: an answer, `LATE`, `IN_CACHE`, a failure; None: both wait.

        `FULL` where `most` questions wait already.
        """

    async def keep(self, some: Sequence[Kept], *, ttl_ms: int) -> None:
        """Put completions into the cache in place of the answers that they were made of."""

    async def hold(self) -> bool:
        """Be the process that keeps the batches, or find that another is."""

    async def jobs(self) -> list[JobState]:
        """The jobs that have questions or batches without an end."""

    async def release(self, *, for_seconds: float = 0.0) -> bool:
        """Keep the batches no more, and not again for `for_seconds`; False where there is no other process."""

    async def take(self, batch: Batch, shelf: str, most: int, most_bytes: int) -> Taken:
        """Move questions from a shelf into a batch, and reserve what they can cost from the job's budget.

        With its first line a batch is written down.
        """

    async def save(self, batch: Batch, *, durable: bool = False) -> None:
        """Write down how far a batch is; `durable`: with all before it, where no crash of the store takes it back."""

    def lines(self, batch: Batch) -> AsyncIterator[list[Line]]:
        """The lines of a batch without an end, in pages."""

    async def find(self, batch: Batch, wanted: Sequence[str]) -> list[Line]:
        """Those lines of a batch that have no end."""

    async def forms(self, digests: Sequence[str]) -> dict[str, Form]:
        """What is stored of some forms."""

    async def settle(self, batch: Batch, ends: Sequence[Settled]) -> Batch:
        """Give lines their ends, once each; returns the batch with these counted."""

    async def discard(self, job_id: str, shelf: str, *, end: Ending) -> int:
        """Give an end to questions that wait on a shelf; returns how many are left there."""

    async def book(self, batch: Batch) -> None:
        """Book the bills of a batch for their payers."""

    async def close(self, batch: Batch) -> None:
        """Write down a batch's end; it has neither lines nor bills any more."""

    async def wake(self) -> None:
        """Send for workers for the chunks whose questions have all an end."""


def split_shelf(shelf: str) -> tuple[str, str]:
    """The endpoint's and the model's name."""
    endpoint, _, model = shelf.partition("/")
    return endpoint, model


def answer_of(stored: bytes) -> bytes:
    """An answer as it came; what is none begins with no codec byte."""
    return bytes(unpacked(stored)) if stored[:1] in CODECS else stored
