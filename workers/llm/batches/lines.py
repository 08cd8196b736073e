"""The lines of a batch's files: one request each in the input, one end of a request each in the results."""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from workers.llm.batches.batch import words_of

#: The most that is handed over at a time: lines, and bytes of lines.
SLICE_LINES: Final = 200
SLICE_BYTES: Final = 1024 * 1024

_MARK: Final = b"\xef\xbb\xbf"
_NOTHING: Final = msgspec.Raw(b"")


class LineEnd(msgspec.Struct, frozen=True):
    """How one request of a batch ended.

    `status` is its response's, 0 where it got none; `body` is the response's as JSON: an answer, or an error. `error`
    is why the provider has not asked it, as one line.
    """

    key: str
    status: int
    body: bytes
    error: str


class _Line(msgspec.Struct):
    custom_id: str | int
    response: msgspec.Raw = _NOTHING
    error: Any = None


class _Response(msgspec.Struct):
    status_code: Any = None
    body: msgspec.Raw = _NOTHING


_LINE: Final = msgspec.json.Decoder(_Line)
_RESPONSE: Final = msgspec.json.Decoder(_Response)


def line_of(key: str, body: bytes, url: str) -> bytes:
    """A line of an input file; `body` is JSON already. Some providers take no `url` (`Provider.line_url`)."""
    request = {"custom_id": key, "method": "POST", "url": url} if url else {"custom_id": key}
    return msgspec.json.encode(request | {"body": msgspec.Raw(body)}) + b"\n"


def read_line(line: bytes) -> LineEnd | None:
    """What a line says; None where it is no JSON, or names no request."""
    try:
        found = _LINE.decode(line)
        key = str(found.custom_id)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # as documented; the caller counts it
    try:
        response = _RESPONSE.decode(found.response)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        response = _Response()  # null, or nothing that is a response
    body = bytes(response.body).removeprefix(b"null")
    return LineEnd(key, _status(response.status_code, body), body, words_of(found.error)) if key else None


def _status(told: Any, body: bytes) -> int:
    """A status of HTTP; that of a success where a provider sends a body without one."""
    if told is None:
        return 200 if body else 0
    number = str(told) if isinstance(told, int | str) else ""
    return int(number) if re.fullmatch("[1-5][0-9]{2}", number) else 0


class LineReader:
    """Takes a file in pieces, and gives what its lines say.

    A line that is longer than `max_line_bytes` is passed over; at most that much is kept.
    """

    def __init__(self, max_line_bytes: int) -> None:
        self._max_line_bytes = max_line_bytes
        self._rest = bytearray()
        self._is_too_long = False
        self.read = 0
        self.unreadable = 0
        self.too_long = 0

    def feed(self, piece: bytes) -> Iterator[tuple[LineEnd, int]]:
        """The ends that are whole now, each with the bytes of its line."""
        head, newline, tail = piece.rpartition(b"\n")
        if newline:
            self._rest += head
            lines = bytes(self._rest).split(b"\n")
            self._rest.clear()
            for number, line in enumerate(lines):
                is_cut = self._is_too_long and number == 0
                if end := self._read(line, is_too_long=is_cut or len(line) > self._max_line_bytes):
                    yield end, len(line)
            self._is_too_long = False
        self._rest += tail
        if len(self._rest) > self._max_line_bytes:
            self._is_too_long = True
            self._rest.clear()

    def last(self) -> LineEnd | None:
        """What stands behind the last line feed."""
        return self._read(bytes(self._rest), is_too_long=self._is_too_long)

    def _read(self, line: bytes, *, is_too_long: bool) -> LineEnd | None:
        if is_too_long:
            self.too_long += 1
            return None
        if not (line := line.removeprefix(_MARK).strip()):
            return None
        end = read_line(line)
        self.read += end is not None
        self.unreadable += end is None
        return end
