"""Cuts what goes over a connection into commands and replies: RESP (Redis, both versions) and HTTP/1.1.

Only as much as the proxy needs: where one ends and the next begins, a command's name, whether a reply is out of turn.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

_LINE: Final = b"\r\n"
_HEAD_END: Final = b"\r\n\r\n"
#: Replies that a server sends out of turn begin with this, but for those to these commands.
_PUSH: Final = b">"
_ANSWERED_BY_PUSH: Final = (b"subscribe", b"psubscribe", b"unsubscribe", b"punsubscribe")
#: What a server that is out of memory refuses to do, of what we use.
_GROWING: Final = frozenset({"SET", "HSET", "HSETNX", "HINCRBY", "XADD", "LPUSH", "RPUSH", "ZADD", "SADD"})
#: What a server that loads its data does nevertheless.
_ALWAYS: Final = frozenset(
    {"HELLO", "AUTH", "SELECT", "CLIENT", "INFO", "MULTI", "DISCARD", "WATCH", "UNWATCH", "SUBSCRIBE", "PSUBSCRIBE",
     "UNSUBSCRIBE", "PUNSUBSCRIBE", "CONFIG", "PING"}
)  # fmt: skip
_LOADING: Final = b"-LOADING Redis is loading the dataset in memory\r\n"
_OOM: Final = b"-OOM command not allowed when used memory > 'maxmemory'.\r\n"
_EXECABORT: Final = b"-EXECABORT Transaction discarded because of: OOM command not allowed\r\n"
#: A command that no server knows: it answers with an error, and spoils the transaction that it stands in.
_UNKNOWN: Final = b"*1\r\n$9\r\nXINJECTED\r\n"
_DISCARD: Final = b"*1\r\n$7\r\nDISCARD\r\n"
_HTTP_500: Final = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nContent-Length: 35\r\n\r\n"
    b'{"error":{"message":"disturbance"}}'
)


@dataclass(frozen=True, slots=True)
class Frame:
    """One command or one reply."""

    name: str
    raw: bytes
    is_out_of_turn: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a server would refuse a command: what it is sent instead (b"": nothing), and what the caller is told."""

    sent: bytes
    told: bytes


class Wire(Protocol):
    """A protocol's frames."""

    def commands(self, buffer: bytearray) -> Iterator[Frame]:
        """Take complete commands off a buffer."""

    def replies(self, buffer: bytearray) -> Iterator[Frame]:
        """Take complete replies off a buffer."""

    def refusal(self, name: str) -> Refusal | None:
        """A refusal that this command can meet; None when there is none."""


def _taken(buffer: bytearray, end_of: Callable[[bytearray], int | None]) -> Iterator[bytes]:
    while buffer and (end := end_of(buffer)) is not None:
        raw = bytes(buffer[:end])
        del buffer[:end]
        yield raw


class Resp:
    """Redis."""

    def commands(self, buffer: bytearray) -> Iterator[Frame]:
        """Each is an array of bulk strings; the first is its name."""
        for raw in _taken(buffer, lambda data: resp_end(data, 0)):
            yield Frame(raw.split(_LINE, 3)[2].decode("ascii", "replace").upper(), raw)

    def replies(self, buffer: bytearray) -> Iterator[Frame]:
        """Whatever comes."""
        for raw in _taken(buffer, lambda data: resp_end(data, 0)):
            is_push = raw.startswith(_PUSH) and raw[:64].split(_LINE)[2].lower() not in _ANSWERED_BY_PUSH
            yield Frame("", raw, is_out_of_turn=is_push)

    def refusal(self, name: str) -> Refusal | None:
        """Out of memory for what grows, loading for the rest."""
        if name in _ALWAYS:
            return None
        if name == "EXEC":
            return Refusal(_DISCARD, _EXECABORT)
        return Refusal(_UNKNOWN, _OOM if name in _GROWING else _LOADING)


def resp_end(data: bytearray, at: int) -> int | None:
    """Where the RESP value that begins at `at` ends; None when it is not complete."""
    line = data.find(_LINE, at)
    if line < 0:
        return None
    kind, after = data[at : at + 1], line + 2
    if kind in b"+-:_,#(":
        return after
    count = int(data[at + 1 : line])
    if kind in b"$!=":
        end = after + count + 2 if count >= 0 else after
        return end if end <= len(data) else None
    # An attribute (`|`) stands before the value that it describes.
    values = {b"%": 2 * count, b"|": 2 * count + 1}.get(bytes(kind), count)
    place: int | None = after
    for _ in range(max(0, values)):
        assert place is not None
        place = resp_end(data, place)
        if place is None:
            return None
    return place


class Http:
    """HTTP/1.1 with a Content-Length."""

    def commands(self, buffer: bytearray) -> Iterator[Frame]:
        """Requests; a name is a method and a path."""
        for raw in _taken(buffer, _http_end):
            yield Frame(b" ".join(raw.split(b" ", 2)[:2]).decode("ascii", "replace"), raw)

    def replies(self, buffer: bytearray) -> Iterator[Frame]:
        """Responses."""
        for raw in _taken(buffer, _http_end):
            yield Frame("", raw)

    def refusal(self, name: str) -> Refusal | None:  # noqa: ARG002  # any request can meet it
        """An internal error, of a server that has not heard the question."""
        return Refusal(b"", _HTTP_500)


def _http_end(data: bytearray) -> int | None:
    head = data.find(_HEAD_END)
    if head < 0:
        return None
    length = 0
    for line in bytes(data[:head]).split(_LINE)[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
    end = head + len(_HEAD_END) + length
    return end if end <= len(data) else None
