"""Single flight: equal questions asked at the same time in one process are asked once."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiters: int = 0


class SingleFlight(Generic[T]):
    """Runs one call a key; later callers of the same key get the same outcome, error included."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    def __repr__(self) -> str:
        return f"<SingleFlight in_flight={len(self._flights)}>"

    async def run(self, key: str, call: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
        """The call's outcome, and whether this caller only waited for another's.

        A waiter that is cancelled leaves the others alone; the call itself is cancelled with its last waiter.
        """
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            flight = _Flight(asyncio.create_task(call(), name=f"flight {key[:12]}"))
            self._flights[key] = flight
            flight.task.add_done_callback(lambda _: self._flights.pop(key, None))
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task), joined
        finally:
            flight.waiters -= 1
            if flight.waiters == 0 and not flight.task.done():
                self._flights.pop(key, None)
                flight.task.cancel()
