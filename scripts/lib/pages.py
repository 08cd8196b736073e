"""Destinations in pages, read by a thread that nothing awaits: it cannot be interrupted while a pipe is silent."""

import asyncio
import contextlib
import threading
from collections.abc import Iterable
from itertools import islice
from typing import Final, Self

from tasks.messages import Destination

#: Destinations in one page, and in the first: work starts while the rest is still being read.
PAGE: Final = 500
FIRST_PAGE: Final = 50
AHEAD: Final = 2


class Pages:
    """Iterates over the pages of an iterable, and raises what it raises. Start it on the loop that uses it."""

    def __init__(self, rows: Iterable[Destination]) -> None:
        self._rows = rows
        self._room = threading.Semaphore(AHEAD)
        self._queue: asyncio.Queue[list[Destination] | BaseException | None] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._first: list[Destination] | None = None

    @property
    def is_reading(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    async def start(self) -> bool:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._read, name="input", daemon=True)
        self._thread.start()
        try:
            self._first = await anext(self)
        except StopAsyncIteration:
            return False
        return True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Destination]:
        if self._first is not None:
            page, self._first = self._first, None
            return page
        item = await self._queue.get()
        self._room.release()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            raise item
        return item

    def _read(self) -> None:
        size = FIRST_PAGE
        try:
            rows = iter(self._rows)
            while page := list(islice(rows, size)):
                self._hand_over(page)
                size = PAGE
            self._hand_over(None)
        except BaseException as exc:  # noqa: BLE001  # raised by the iteration
            self._hand_over(exc)

    def _hand_over(self, item: list[Destination] | BaseException | None) -> None:
        self._room.acquire()
        assert self._loop  # noqa: S101  # set before the thread starts
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
