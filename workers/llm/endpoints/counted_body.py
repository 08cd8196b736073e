"""The body of a request, which counts the call when it is sent.

A call counts from the moment in which its bytes are handed to the operating system, which delivers them also when this
process is killed. Before that there was no call.
"""

from typing import Any, Protocol

from aiohttp import BytesPayload


class CallCounter(Protocol):
    def sending(self) -> None:
        """The call is about to be handed to the operating system: `sent` or `unsent` follows."""

    def unsent(self) -> None: ...

    def sent(self) -> None: ...


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
