"""Single flight: equal questions asked at the same time in one process are asked once."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _Flight(Generic[T]):
    """A call in a task of its own, and a future for each of its callers: as `asyncio.shield`, with fewer parts."""

    __slots__ = ("task", "waiters")

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.waiters: list[asyncio.Future[T]] = []

    def waiting(self) -> list[asyncio.Future[T]]:
        return [waiter for waiter in self.waiters if not waiter.done()]


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
            flight = self._flights[key] = _Flight()
            flight.task = asyncio.create_task(self._fly(key, flight, call))
        waiter: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        flight.waiters.append(waiter)
        try:
            return await waiter, joined
        finally:
            flight.waiters.remove(waiter)
            if not flight.waiters and not flight.task.done():
                self._forget(key, flight)
                flight.task.cancel()

    async def _fly(self, key: str, flight: _Flight[T], call: Callable[[], Coroutine[Any, Any, T]]) -> None:
        try:
            outcome = await call()
        except Exception as exc:  # noqa: BLE001  # every caller raises it
            self._forget(key, flight)
            for waiter in flight.waiting():
                waiter.set_exception(exc)
        except BaseException:
            self._forget(key, flight)
            for waiter in flight.waiting():
                waiter.cancel()
            raise
        else:
            self._forget(key, flight)
            for waiter in flight.waiting():
                waiter.set_result(outcome)

    def _forget(self, key: str, flight: _Flight[T]) -> None:
        """Let later callers begin anew; where all callers were cancelled another flight may have the key by now."""
        if self._flights.get(key) is flight:
            del self._flights[key]
