"""What calls cost, counted while they are made, so that a call that fails or is cut short is in the books too."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, Self, TypeVar

import msgspec

from workers.observe.call_journal import Expected, Recording

T = TypeVar("T")


class Payer(Protocol):
    """What calls are paid from before they are made (`workers.llm.budget.JobBudget`)."""

    @property
    def job_id(self) -> str: ...

    def pay(
        self, worst_nano: int | None, spend: "Spend", call: Callable[["Spend"], Awaitable[T]], *, request_priority: int
    ) -> Coroutine[Any, Any, T]: ...


class Spend(msgspec.Struct, eq=False):
    """What a piece of work has cost so far; filled while it runs, so that a failure is in the books too.

    `budget` pays for its calls where the job has one; `recording` writes them down where a kill cannot take them.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    #: Answers whose tokens the server did not count: they were estimated.
    estimated: int = 0
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
        self._add(other.prompt_tokens, other.completion_tokens, other.cost_usd, other.estimated)

    def add_tokens(self, prompt: int, completion: int, cost: float | None, *, estimated: int = 0) -> None:
        """Count the tokens of some answers, `estimated` of which are estimates."""
        if self.recording:
            self.recording.ended(
                0, prompt_tokens=prompt, completion_tokens=completion, cost_usd=cost, estimated=estimated
            )
        self._add(prompt, completion, cost, estimated)

    def _add(self, prompt: int, completion: int, cost: float | None, estimated: int) -> None:
        self.estimated += estimated
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        self.cost_usd = None if self.cost_usd is None or cost is None else self.cost_usd + cost


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

    def answered(self, prompt: int, completion: int, cost: float | None, *, estimated: bool) -> None:
        """Count the answer in place of what was expected."""
        self._end(prompt, completion, cost, int(estimated))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """A call that was sent is paid for: one that was cancelled as expected, one without an answer by no tokens."""
        if self._sent and kind is not None and issubclass(kind, asyncio.CancelledError):
            e, sent = self._expected, self._sent
            cost = None if e.cost_usd is None else sent * e.cost_usd
            self._end(sent * e.prompt_tokens, sent * e.completion_tokens, cost, sent)
        elif self._sent:
            self._end(0, 0, 0.0, 0)

    def _end(self, prompt: int, completion: int, cost: float | None, estimated: int) -> None:
        self._spend._add(prompt, completion, cost, estimated)  # noqa: SLF001  # the two are one machine
        sent, self._sent = self._sent, 0
        if self._recording:
            self._recording.ended(
                sent,
                self._expected,
                prompt_tokens=prompt,
                completion_tokens=completion,
                cost_usd=cost,
                estimated=estimated,
            )
