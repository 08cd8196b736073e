"""The body of a request that says when it is sent.

A call counts from the moment in which its bytes are handed to the operating system, which delivers them also when this
process is killed: so what we count is what the server gets. Before that (no connection yet, in line for one, a
connection that closes) there was no call.
"""

from typing import Any, Protocol

from aiohttp import BytesPayload


class CallCounter(Protocol):
    """Counts calls as they are sent."""

    def sending(self) -> None:
        """The next thing that happens is that the call is handed to the operating system."""

    def unsent(self) -> None:
        """It was not."""

    def sent(self) -> None:
        """It was."""


class CountedBody(BytesPayload):
    """Bytes that tell a counter when they are sent, once for each time.

    aiohttp sends the head of a request together with the first bytes of its body. It relies on `StreamWriter.write`
    doing that at once when it need not drain; tests/integration/test_recorder.py holds that against a real server.
    """

    def __init__(self, value: bytes, counter: CallCounter) -> None:
        super().__init__(value, content_type="application/json")
        self._counter = counter

    async def write_with_length(self, writer: Any, content_length: int | None) -> None:
        """Write all of it: nothing comes between the announcement, the bytes and the count."""
        del content_length  # it is ours: the length of all
        self._counter.sending()
        try:
            await writer.write(self._value, drain=False)
        except BaseException:
            self._counter.unsent()
            raise
        self._counter.sent()
        await writer.drain()
