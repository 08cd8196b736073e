"""A chat-completions server that costs little, so that its clients are measured: `light_server.py SECONDS`.

It answers the product's sixteen prompts in real size (`full_answers.py`) after SECONDS by its own clock, the same
prompt always with the same answer, and prints its base URL. Its bodies are made before it listens; of a request it
reads the length, the schema's name and the block of data. A request without a schema that it knows gets `{}`, and
`GET` of anything the number of requests that were posted until now.
"""

import asyncio
import re
import sys
import zlib
from typing import ClassVar

if __package__ is None or not __package__:
    from full_answers import MARK, bodies, completion, names, own_word  # started as a script, its folder is on the path
else:
    from tests.benchmarks.full_answers import MARK, bodies, completion, names, own_word

_SCHEMA = b'"json_schema":{"name":"'
#: The name elsewhere in the body: other clients order and space their JSON as they like, or only keep its title.
_NAME = re.compile(rb'"(?:name|title)"\s*:\s*"(%b)"' % "|".join(names()).encode())
_LENGTH = b"content-length:"


def reply(body: bytes) -> bytes:
    """A whole HTTP response, in chunks as most servers send theirs."""
    half = len(body) // 2
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]))
    return head + chunks + b"0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests on it come one after the other."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        request = self._received = self._received + data
        end = request.find(b"\r\n\r\n")
        if end < 0:
            return
        head = request[:end].lower()
        at = head.find(_LENGTH)
        length = int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(request) < end + 4 + length:
            return
        self._received = b""
        is_post = request.startswith(b"POST")
        seconds, answer = (self.seconds_of(request) if is_post else 0.0), self.answer_to(request)
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self._write, answer)
        else:
            self._write(answer)

    def seconds_of(self, request: bytes) -> float:
        del request
        return self._seconds

    def answer_to(self, request: bytes) -> bytes:
        raise NotImplementedError

    def _write(self, answer: bytes) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(answer)


class Full(Connection):
    """Answers in real size, prepared once for all connections."""

    known: ClassVar[dict[bytes, list[bytes]]] = {}
    other = reply(completion("{}"))
    posted: ClassVar[int] = 0

    def answer_to(self, request: bytes) -> bytes:
        if not request.startswith(b"POST"):
            return reply(b"%d" % Full.posted)
        Full.posted += 1
        at = request.find(_SCHEMA) + len(_SCHEMA)
        variants = self.known.get(request[at : request.find(b'"', at)])
        if not variants and (found := _NAME.search(request)):
            variants = self.known.get(found[1])
        if not variants:
            return self.other
        # The system's text names the markers too.
        data = request.rfind(b"<input>")
        number = zlib.crc32(request[data : request.find(b"</input>", data)])
        return variants[number % len(variants)].replace(MARK, own_word(number // len(variants)))


async def serve(make: type[Connection], *arguments: object) -> None:
    """Listen on a free port, print the base URL, and serve for ever."""
    server = await asyncio.get_running_loop().create_server(lambda: make(*arguments), "127.0.0.1", 0, backlog=2_048)  # type: ignore[arg-type]
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    Full.known = {name: [reply(body) for body in some] for name, some in bodies().items()}
    asyncio.run(serve(Full, float(sys.argv[1])))
