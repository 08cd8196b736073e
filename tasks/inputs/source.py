"""The text of one input: unpacked, decoded, in lines.

Gzip is unpacked; UTF-8, UTF-16 and UTF-32 with a mark, and Windows-1252 are decoded. A file is UTF-8 from its first
valid character beyond ASCII on, and a byte that is none then costs its row; it is Windows-1252 where a byte that is no
UTF-8 comes first.
"""

import codecs
import gzip
import io
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, Final

from tasks.errors import InputError
from tasks.inputs.columns import BadRowError

#: Bytes of one line, at most; characters of one row.
MAX_ROW: Final = 1024 * 1024
READ_BYTES: Final = 256 * 1024
#: A file is binary where one in `BINARY_SHARE` bytes of its beginning is NUL; fewer cost their rows.
BINARY_SHARE: Final = 8
#: Bytes looked at to tell the format.
SNIFF_BYTES: Final = 64 * 1024
#: Bytes of a workbook that are kept in memory.
SPOOLED_BYTES: Final = 8 * 1024 * 1024

_GZIP: Final = b"\x1f\x8b"
_ZIP: Final = b"PK\x03\x04"
#: What a file that is no text begins with, and what it is.
_OTHERS: Final = {
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls): save it as CSV UTF-8",
    b"<": "HTML or XML: save its table as CSV UTF-8",
    b"PAR1": "a Parquet file: convert it to CSV UTF-8",
    b"%PDF": "a PDF: copy its table into a CSV file",
    b"BZh": "packed by bzip2: unpack it with bunzip2",
    b"\xfd7zXZ": "packed by xz: unpack it with unxz",
    b"(\xb5/\xfd": "packed by zstd: unpack it with unzstd",
}
#: Marks at the beginning of a text, the longer ones first: the codec, and its name for people.
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"), (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"), (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)  # fmt: skip
#: A byte that is no UTF-8, as the error handler `surrogateescape` leaves it.
ESCAPED: Final = re.compile("[\udc80-\udcff]")
#: A character that was decoded from UTF-8 beyond ASCII.
_DECODED: Final = re.compile("[^\x00-\x7f\udc80-\udcff]")

_Read = Callable[[int], bytes]


class Source:
    """One input, whose head can be looked at before it is read.

    Line ends of old Macs (a lone carriage return) are turned into line feeds.
    """

    def __init__(self, binary: IO[bytes], name: str) -> None:
        self.name = name
        # What is there to read, without waiting for more: a pipe may be slow, and work starts with its first rows.
        self._some: _Read = getattr(binary, "read1", binary.read)
        self.is_gzip = False
        self.encoding = "UTF-8"
        #: Whether valid UTF-8 beyond ASCII was read.
        self._has_utf8 = False
        self._unread = b""
        start = self._begin()
        self.is_zip = start.startswith(_ZIP)
        for magic, what in _OTHERS.items():
            if start.startswith(magic):
                raise InputError(f"{name}: {what}")
        self._only_cr = False
        self._unread = start if self.is_zip else self._first_lines(start)
        if not self.is_zip and self._unread.count(0) * BINARY_SHARE >= len(self._unread) > 0:
            raise InputError(f"{name}: binary data (NUL bytes), not text; if it is UTF-16, save it as UTF-8")
        self._only_cr = b"\r" in self._unread and b"\n" not in self._unread
        self._unread = self._line_ends(self._unread)
        #: The beginning, decoded as well as it can be.
        self.head = "" if self.is_zip else self._decoded_head()

    def read(self, size: int) -> bytes:
        """At most `size` bytes of UTF-8 or Windows-1252; none at the end."""
        if self._unread:
            piece, self._unread = self._unread[:size], self._unread[size:]
            return piece
        return self._line_ends(self._read(size))

    def text(self, raw: bytes) -> str:
        """A line as text; a byte that is neither UTF-8 nor Windows-1252 stays escaped, as a lone surrogate."""
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            return self.legacy(raw.decode("utf-8", "surrogateescape"))
        if not text.isascii():
            self._has_utf8 = True
        return text

    def legacy(self, text: str) -> str:
        """Text whose escaped bytes are read as Windows-1252, unless the file is UTF-8."""
        if self.encoding == "UTF-8" and (self._has_utf8 or len(_DECODED.findall(text)) >= len(ESCAPED.findall(text))):
            self._has_utf8 = True
            return text
        self.encoding = "Windows-1252"
        return ESCAPED.sub(_windows_1252, text)

    def note_utf8(self) -> None:
        """Take in that valid UTF-8 beyond ASCII was read."""
        self._has_utf8 = True

    def whole(self) -> IO[bytes]:
        """Everything, in a file that can be sought; close it."""
        file = tempfile.SpooledTemporaryFile(SPOOLED_BYTES)  # noqa: SIM115  # the caller closes it
        shutil.copyfileobj(_Raw(self), file)
        file.seek(0)
        return file

    def _begin(self) -> bytes:
        """Enough of the beginning to know packing and encoding by, and from there on `_some` gives plain UTF-8."""
        start = self._at_least(4)
        if start.startswith(_GZIP):
            self.is_gzip = True
            packed = gzip.GzipFile(fileobj=io.BufferedReader(_Joined(start, self._some)))
            self._some = packed.read1
            start = self._at_least(4)
        for mark, codec, encoding in _MARKS:
            if start.startswith(mark):
                self.encoding, self._has_utf8 = encoding, True
                self._some = _transcoding(codec, _Joined(start, self._some).some)
                return b""
        return start

    def _at_least(self, size: int) -> bytes:
        start = b""
        while len(start) < size and (piece := self._read(SNIFF_BYTES)):
            start += piece
        return start

    def _first_lines(self, head: bytes) -> bytes:
        """Enough to tell the format: the first line with text at least."""
        while len(head) < SNIFF_BYTES and b"\n" not in head.lstrip():
            piece = self._read(SNIFF_BYTES - len(head))
            if not piece:
                break
            head += piece
        return head

    def _decoded_head(self) -> str:
        """The head, and by the majority of its lines which encoding it has."""
        lines = [line for line in self._unread.split(b"\n")[:-1] or [self._unread] if not line.isascii()]
        valid = sum(_is_utf8(line) for line in lines)
        if valid and valid * 2 >= len(lines):
            self._has_utf8 = True
        elif lines and len(lines) > valid:
            self.encoding = "Windows-1252"
        return self._unread.decode("utf-8-sig" if self.encoding != "Windows-1252" else "cp1252", "replace")

    def _read(self, size: int) -> bytes:
        try:
            piece = self._some(size) or b""
        except (OSError, ValueError, EOFError, zlib.error) as exc:
            why = getattr(exc, "strerror", None) or exc
            raise InputError(f"{self.name}: cannot be read ({why})") from exc
        if not isinstance(piece, bytes):
            raise InputError(f"{self.name}: gives {type(piece).__name__}, not bytes; open it in binary mode")
        return piece

    def _line_ends(self, piece: bytes) -> bytes:
        return piece.replace(b"\r", b"\n") if self._only_cr else piece


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _windows_1252(found: re.Match[str]) -> str:
    """An escaped byte as a character; those that Windows-1252 does not define stay escaped."""
    return bytes([ord(found.group()) - 0xDC00]).decode("cp1252", "surrogateescape")


def _transcoding(codec: str, some: _Read) -> _Read:
    """Reads another encoding as UTF-8; what cannot be decoded becomes U+FFFD."""
    decoder = codecs.getincrementaldecoder(codec)("replace")

    def read(size: int) -> bytes:
        while raw := some(size):
            if text := decoder.decode(raw):
                return text.encode("utf-8", "replace")
        return decoder.decode(b"", final=True).encode("utf-8", "replace")

    return read


class _Joined(io.RawIOBase):
    """Bytes that were read already, then the rest."""

    def __init__(self, start: bytes, some: _Read) -> None:
        self._start = start
        self._some = some

    def readable(self) -> bool:
        return True

    def some(self, size: int) -> bytes:
        if self._start:
            piece, self._start = self._start[:size], self._start[size:]
            return piece
        return self._some(size)

    def readinto(self, buffer: Any) -> int:
        piece = self.some(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


class _Raw(io.RawIOBase):
    """A source as a file, so that the standard library can find its lines."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._source.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


class Lines:
    """The decoded lines of a source, counted; iterate once. A line that is too long comes as a `BadRowError`."""

    def __init__(self, source: Source) -> None:
        self._source = source
        #: The line that was read last, from 1.
        self.number = 0

    def __iter__(self) -> Iterator[str | BadRowError]:
        rest = b""
        is_passed_over = False
        is_first = True
        while True:
            piece = self._source.read(READ_BYTES)
            if is_first:
                piece, is_first = piece.removeprefix(codecs.BOM_UTF8), False
            # The lines that are whole now; at the end of the source the last one may lack its line feed.
            end = piece.rfind(b"\n") + 1 if piece else 0
            block, rest = (rest + piece[:end], piece[end:]) if end or not piece else (b"", rest + piece)
            if block and (is_passed_over or block.find(b"\n") > MAX_ROW):
                block = block[block.find(b"\n") + 1 :] if b"\n" in block else b""
                is_passed_over = False
                self.number += 1
                yield BadRowError(f"a line of more than {MAX_ROW} bytes")
            for line in self._decoded(block):
                self.number += 1
                yield line
            if len(rest) > MAX_ROW or is_passed_over:
                rest, is_passed_over = b"", True
            if not piece:
                if is_passed_over:
                    self.number += 1
                    yield BadRowError(f"a line of more than {MAX_ROW} bytes")
                return

    def _decoded(self, block: bytes) -> Iterable[str]:
        """The lines of a block, decoded at once where all of it is UTF-8."""
        try:
            text = block.decode("utf-8")
        except UnicodeDecodeError:
            return map(self._source.text, io.BytesIO(block))
        if not text.isascii():
            self._source.note_utf8()
        return io.StringIO(text)
