"""A chat-completions server that costs next to nothing, so that its client is measured: `light_server.py SECONDS`.

It parses as little HTTP as it can, answers every POST with the same valid completion after SECONDS, by its own clock,
and prints its base URL.
"""

import asyncio
import json
import sys

ANSWER = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "model": "sandbox",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "{}"}}],
        "usage": {"prompt_tokens": 400, "completion_tokens": 10, "total_tokens": 410},
    }
).encode()
REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it come one after the other."""

    reply = REPLY

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(fields.get(b"content-length", b"0")):
            return
        self._received = b""
        is_post = head.startswith(b"POST")
        asyncio.get_running_loop().call_later(self._seconds if is_post else 0, self._answer)

    def _answer(self) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(self.reply)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Connection(float(sys.argv[1])), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
