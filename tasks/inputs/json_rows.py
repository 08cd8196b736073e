"""The elements of a JSON list, read as a stream.

The list is the document, `[…]`, or stands in `{"destinations": […]}`, in GeoJSON's `features`, in SPARQL's `bindings`.

The standard library's decoder wants a whole document; here it is given one element at a time, from a window over the
text that grows only while an element is incomplete. A bad element is passed over by its brackets and quotes alone.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from tasks.inputs.columns import BadRowError
from tasks.inputs.rows import DECODER, LISTS, Row, plain_row
from tasks.inputs.source import ESCAPED, MAX_ROW, Source

READ_BYTES: Final = 64 * 1024

_BLANK: Final = re.compile(r"[ \t\r\n]*")
_SEPARATORS: Final = re.compile(r"[ \t\r\n,]*")
#: The rest of a string up to its quote, or to a backslash whose character is not there yet.
_IN_STRING: Final = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
#: What ends nothing and opens nothing, whole strings included: within an element, and beside one.
_WITHIN: Final = re.compile(r'(?:[^"\[\]{}]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
_BESIDE: Final = re.compile(r'(?:[^"\[\]{},]++|"(?:[^"\\]++|\\.)*+")*+', re.DOTALL)
#: Where the list may stand, for people.
_PLACES: Final = ", ".join(f"`{key}`" for key in sorted(LISTS))


def json_rows(source: Source) -> Iterator[Row]:
    """Each element with the line on which it starts."""
    window = _Window(source)
    start = window.skip(_BLANK)
    if start == "{":
        window.pos += 1
        if not _enter_list(window):
            yield window.line, BadRowError(f"expected a list of destinations, or an object with one in {_PLACES}")
            return
    elif start != "[":
        yield window.line, BadRowError("expected a list of destinations: [ … ]")
        return
    window.pos += 1
    yield from _elements(window)
    if start == "[" and window.skip(_BLANK):
        yield window.line, BadRowError("the list ends before this; nothing may follow it")


def _elements(window: "_Window") -> Iterator[Row]:
    """What stands between the brackets, whose first has been passed; passes the last."""
    while (char := window.skip(_SEPARATORS)) != "]":
        if not char:
            yield window.line, BadRowError("the list is not closed; is the file cut off?")
            return
        if char == "}":
            yield window.line, BadRowError("not valid JSON: a brace that was not opened")
            window.pos += 1
            continue
        line = window.line
        yield line, plain_row(window.element())
        if window.skip(_BLANK) not in {",", "]", ""}:
            yield window.line, BadRowError("not valid JSON: expected a comma")
            window.pass_over()
    window.pos += 1


def _enter_list(window: "_Window") -> bool:
    """Go to the list in an object, whose brace has been passed."""
    while window.skip(_SEPARATORS) == '"':
        key = window.element()
        if window.skip(_BLANK) != ":":
            return False
        window.pos += 1
        start = window.skip(_BLANK)
        if start == "[" and key in LISTS:
            return True
        if start == "{" and key == "results":
            window.pos += 1
            return _enter_list(window)
        window.pass_over()
    return False


@dataclass(slots=True)
class _Scan:
    """How far the end of an element has been looked for."""

    pos: int
    depth: int = 0
    in_string: bool = False
    is_escaped: bool = False


class _Window:
    """A piece of the text, and where in it we are."""

    def __init__(self, source: Source) -> None:
        self._source = source
        # A byte that is no UTF-8 costs the element in which it stands.
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._text = ""
        self._is_at_end = False
        self._pos = 0
        #: The line of `pos`, from 1.
        self.line = 1

    @property
    def pos(self) -> int:
        return self._pos

    @pos.setter
    def pos(self, value: int) -> None:
        self.line += self._text.count("\n", self._pos, value)
        self._pos = value

    def skip(self, blanks: re.Pattern[str]) -> str:
        """Pass over what matches; the character after it, or nothing at the end of the text."""
        while True:
            match = blanks.match(self._text, self._pos)
            self.pos = match.end() if match else self._pos
            if self._pos < len(self._text):
                return self._text[self._pos]
            if not self._grow(1):
                return ""

    def element(self) -> Any:
        """The value that starts here, or a `BadRowError`; passes it."""
        while True:
            value: Any
            end: int | None
            try:
                value, end = DECODER.raw_decode(self._text, self._pos)
            except (ValueError, RecursionError) as exc:
                value, end = self._undecodable(exc)
            if end is not None and (end < len(self._text) or self._is_at_end):
                too_long = end - self._pos > MAX_ROW
                self.pos = end
                return _too_long() if too_long else value
            if len(self._text) - self._pos > MAX_ROW:
                self.pass_over()
                return _too_long()
            # Twice as much at least, so that a long element costs no more than twice its length.
            if not self._grow(max(1, len(self._text) - self._pos)) and end is None:
                self.pos = len(self._text)
                return value

    def pass_over(self) -> None:
        """Go to the comma or bracket that ends the element that starts here, reading on but keeping nothing."""
        scan = _Scan(self._pos)
        while (end := self._scan(scan)) is None:
            self.pos = len(self._text)
            if not self._grow(1):
                return
            scan.pos = self._pos
        self.pos = end

    def _undecodable(self, exc: Exception) -> tuple[BadRowError, int | None]:
        """Why, and where the element ends; no end while it may only be incomplete."""
        reason = exc.args[0] if exc.args else type(exc).__name__
        # The decoder's own line and column count from the window, not from the file.
        why = str(getattr(exc, "msg", reason)).removesuffix(" at")
        return BadRowError(f"not valid JSON: {why}"), self._scan(_Scan(self._pos))

    def _scan(self, scan: _Scan) -> int | None:
        """Look for the end of an element; None when it is not in the piece."""
        text = self._text
        if scan.is_escaped and scan.pos < len(text):
            scan.pos, scan.is_escaped = scan.pos + 1, False
        while scan.pos < len(text):
            uneventful = _IN_STRING if scan.in_string else _WITHIN if scan.depth else _BESIDE
            match = uneventful.match(text, scan.pos)
            at = match.end() if match else scan.pos
            if at == len(text):
                break
            char, scan.pos = text[at], at + 1
            if char == "\\":
                scan.is_escaped = True
            elif char == '"':
                scan.in_string = not scan.in_string
            elif char in "[{":
                scan.depth += 1
            elif scan.depth == 0:
                return at
            else:
                scan.depth -= 1
        return None

    def _grow(self, at_least: int) -> bool:
        """Read `at_least` more bytes and drop what has been passed; False at the end of the text."""
        if self._is_at_end:
            return False
        pieces = [self._text[self._pos :]]
        while at_least > 0 and not self._is_at_end:
            raw = self._source.read(READ_BYTES)
            self._is_at_end = not raw
            pieces.append(self._decoded(raw))
            at_least -= len(raw)
        self._text, self._pos = "".join(pieces), 0
        return len(self._text) > len(pieces[0])

    def _decoded(self, raw: bytes) -> str:
        text = self._decode.decode(raw, final=not raw)
        if ESCAPED.search(text):
            return self._source.legacy(text)
        if not text.isascii():
            self._source.note_utf8()
        return text


def _too_long() -> BadRowError:
    return BadRowError(f"a row of more than {MAX_ROW} characters")
