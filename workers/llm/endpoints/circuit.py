"""Whether an endpoint is worth asking: a circuit breaker.

closed: requests go. After `FAILURES` in a row it opens: callers wait. After a pause it is half-open: one request goes
as a probe. Its success closes the circuit; its failure opens it again, for twice as long, and fails every waiting
caller: an endpoint that stays down is asked once a pause instead of once a prompt.

Source: Nygard, "Release It!", 2nd edition, 2018, chapter 5.
"""

import asyncio
import random
import time
from collections.abc import Callable, Hashable, Iterable
from enum import StrEnum
from typing import Final

from tasks.errors import EndpointAwayError

#: Failures in a row that open the circuit.
FAILURES: Final = 5
#: Pieces of work that must have failed before the endpoint is at fault, and not what it was asked.
WITNESSES: Final = 3
#: Seconds for which an endpoint is left alone that refuses the key or does not know the model.
REFUSED_SECONDS: Final = 60.0


class CircuitState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Circuit:
    """One endpoint's circuit. Pauses start at `base_seconds` and double up to `most_seconds`."""

    def __init__(
        self,
        *,
        base_seconds: float,
        most_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._base_seconds = base_seconds
        self._most_seconds = most_seconds
        self._clock = clock
        self._draw = draw
        self._in_a_row = 0
        self._opened = 0
        self._opened_at = float("-inf")
        self._closed_until: float | None = None
        self._probing = False
        self._verdict: asyncio.Future[Exception | None] | None = None
        self.failures = 0
        #: The error that opened it last; None while it is closed.
        self.error: Exception | None = None
        #: When it opened first since the endpoint answered last, by the clock; None while it is closed.
        self.down_since: float | None = None
        #: Whose requests have failed since the last answer.
        self._witnesses: set[Hashable] = set()

    def __repr__(self) -> str:
        return f"<Circuit {self.state} failures={self.failures}>"

    @property
    def state(self) -> CircuitState:
        if self._closed_until is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if self._clock() < self._closed_until else CircuitState.HALF_OPEN

    @property
    def allows(self) -> bool:
        return self._closed_until is None or (self.state is CircuitState.HALF_OPEN and not self._probing)

    @property
    def is_outage(self) -> bool:
        """Whether the endpoint is away for all requests, not only for one that kills it each time."""
        error = self.error
        if self.down_since is None or not isinstance(error, EndpointAwayError):
            return False
        return error.is_unreachable or len(self._witnesses) >= WITNESSES

    @property
    def down_seconds(self) -> float | None:
        """Seconds since it opened without an answer in between; None while it is closed."""
        return None if self.down_since is None else self._clock() - self.down_since

    @property
    def left_seconds(self) -> float | None:
        """Seconds until a probe may go; None while one is under way."""
        return None if self._probing else max(0.0, (self._closed_until or 0.0) - self._clock())

    def admit(self) -> bool:
        """Acquire the right to send a request, as the probe where one is due."""
        if not self.allows:
            return False
        self._probing = self._closed_until is not None
        return True

    def succeeded(self) -> None:
        """The endpoint answered, be it with a refusal."""
        self._in_a_row = self._opened = 0
        self.error = self.down_since = None
        self._witnesses.clear()
        if self._closed_until is not None:
            self._closed_until, self._probing = None, False
            self._tell(None)

    def failed(self, error: Exception, *, sent_at: float, witness: Hashable = None) -> None:
        """A request sent at `sent_at` (by the circuit's clock) failed by the endpoint's fault; `witness` is whose."""
        self.failures += 1
        if len(self._witnesses) < WITNESSES:
            self._witnesses.add(witness)
        if self._probing:
            self._open(error)
        elif self._closed_until is None and sent_at > self._opened_at:
            self._in_a_row += 1
            if self._in_a_row >= FAILURES:
                self._open(error)

    def refused(self, error: Exception) -> None:
        """The endpoint will go on failing until its settings are mended."""
        self.failures += 1
        self._open(error, REFUSED_SECONDS)

    def withdrawn(self) -> None:
        """The request ended before the endpoint answered: the next one may probe."""
        if self._probing:
            self._probing = False
            self._tell(None)

    def verdict(self) -> asyncio.Future[Exception | None]:
        """Comes when the endpoint has been tried: None, or the error of the probe."""
        if self._verdict is None or self._verdict.done():
            self._verdict = asyncio.get_running_loop().create_future()
        return self._verdict

    def _open(self, error: Exception, seconds: float | None = None) -> None:
        pause = min(self._most_seconds, self._base_seconds * float(2**self._opened))
        self._opened = min(self._opened + 1, 30)
        self._opened_at = self._clock()
        self.error = error
        self.down_since = self._opened_at if self.down_since is None else self.down_since
        # Between half and all of the pause: processes that failed together do not probe together.
        self._closed_until = self._opened_at + (seconds or pause / 2 + self._draw() * pause / 2)
        self._probing, self._in_a_row = False, 0
        self._tell(error)

    def _tell(self, error: Exception | None) -> None:
        if self._verdict is not None and not self._verdict.done():
            self._verdict.set_result(error)


async def until_one_allows(circuits: Iterable[Circuit]) -> Exception | None:
    """Wait until one of some open circuits may let something through; the error when what was tried has failed."""
    verdicts = {circuit.verdict() for circuit in circuits}
    lefts = [left for circuit in circuits if (left := circuit.left_seconds) is not None]
    done, _ = await asyncio.wait(verdicts, timeout=min(lefts) if lefts else None, return_when=asyncio.FIRST_COMPLETED)
    errors = [error for verdict in done if (error := verdict.result()) is not None]
    return errors[0] if errors else None
