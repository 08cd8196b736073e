"""What calls cost, counted while they are made, so that a call that fails or is cut short is in the books too."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Protocol, Self, TypeVar

import msgspec

from workers.observe.call_journal import NO_BILL, Bill, Expected, Recording

T = TypeVar("T")

#: The whole numbers of a bill.
_COUNTS: Final = tuple(name for name in Bill.__struct_fields__ if not name.endswith("_usd"))
_DOLLARS: Final = tuple(name for name in Bill.__struct_fields__ if name.endswith("_usd"))


class Terms(msgspec.Struct, frozen=True):
    """How a job's calls are bought. Without a `tier` as the settings of an endpoint say.

    Calls of the tier flex are standard ones from `deadline_at` on, in seconds since 1970, and nothing waits for a
    batch any more. The chunk is what waits for one; `payer` is the destination and its attempt, `ID ATTEMPT`.
    """

    tier: str = ""
    deadline_at: float | None = None
    job_id: str = ""
    chunk_id: str = ""
    payer: str = ""


#: As the settings say.
USUAL: Final = Terms()


class Payer(Protocol):
    """What calls are paid from before they are made (`workers.llm.budget.JobBudget`)."""

    @property
    def job_id(self) -> str: ...

    def pay(
        self, worst_nano: int | None, spend: "Spend", call: Callable[["Spend"], Awaitable[T]], *, request_priority: int
    ) -> Coroutine[Any, Any, T]: ...


class Spend(msgspec.Struct, eq=False):
    """What a piece of work has cost so far; filled while it runs, so that a failure is in the books too.

    Calls are bought on `terms`, and paid for by `budget` where the job has one; `recording` writes them down where a
    kill cannot take them.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    #: Answers whose tokens the server did not count: they were estimated.
    estimated: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    #: What the price lists say that it cost.
    listed_usd: float | None = 0.0
    #: What the service tiers have saved against standard.
    tier_saved_usd: float | None = 0.0
    terms: Terms = USUAL
    budget: Payer | None = None
    recording: Recording | None = None

    def sending(self) -> None:
        """See `CallCounter`."""

    def unsent(self) -> None: ...

    def sent(self) -> None:
        self.calls += 1

    def call(self, expected: Expected) -> "CallUnderWay":
        return CallUnderWay(self, expected)

    def take(self, other: "Spend") -> None:
        """Count what another has counted, and written down if that was to be done."""
        self.calls += other.calls
        self._add(Bill(**{name: getattr(other, name) for name in Bill.__struct_fields__}))

    def _add(self, bill: Bill) -> None:
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(bill, name))
        for name in _DOLLARS:
            mine, more = getattr(self, name), getattr(bill, name)
            setattr(self, name, None if mine is None or more is None else mine + more)


class CallUnderWay:
    """One call, or several while the client learns how to ask; each counts in its spend once it is sent.

    A `CallCounter`. Use as a context manager: at its end, calls that were sent and not answered are booked.
    """

    __slots__ = ("_expected", "_recording", "_sent", "_spend")

    def __init__(self, spend: Spend, expected: Expected) -> None:
        self._spend = spend
        self._recording = spend.recording
        self._expected = expected
        self._sent = 0

    def __repr__(self) -> str:
        return f"<CallUnderWay sent={self._sent}>"

    def sending(self) -> None:
        if self._recording:
            self._recording.sending()

    def unsent(self) -> None:
        if self._recording:
            self._recording.unsent()

    def sent(self) -> None:
        self._spend.calls += 1
        self._sent += 1
        if self._recording:
            self._recording.sent(self._expected)

    def answered(self, bill: Bill) -> None:
        """Count the answer in place of what was expected."""
        self._end(bill)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """A call that was sent is paid for: one that was cancelled as expected, one without an answer by no tokens."""
        if self._sent and kind is not None and issubclass(kind, asyncio.CancelledError):
            e, sent = self._expected, self._sent
            cost = None if e.cost_usd is None else sent * e.cost_usd
            self._end(Bill(sent * e.prompt_tokens, sent * e.completion_tokens, cost, cost, sent))
        elif self._sent:
            self._end(NO_BILL)

    def _end(self, bill: Bill) -> None:
        self._spend._add(bill)  # noqa: SLF001  # the two are one machine
        sent, self._sent = self._sent, 0
        if self._recording:
            self._recording.ended(sent, self._expected, bill)
