"""Bytes behind one codec byte, and frames of zstd: whole, with their size, and bounded before they are believed."""

import threading
from typing import Final

import zstandard

from config.errors import ThemesError

#: Bytes that one frame may have when it is unpacked: a chunk of 1,000 rows with a few KB of extra columns each.
MAX_UNPACKED_BYTES: Final = 64 * 1024 * 1024
#: zstd's level: the next three take twice the time for five percent.
LEVEL: Final = 3

#: Below this size compression costs more than it saves.
COMPRESS_FROM_BYTES: Final = 256
CODECS: Final = (b"\x00", b"\x01")
_RAW, _ZSTD = CODECS


class WireError(ThemesError, ValueError):
    """These bytes are not a message of ours: foreign, corrupt, too new or too large."""


class _Zstd(threading.local):
    """Both for each thread: to make one takes longer than to use it, and two threads cannot share it."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd: Final = _Zstd()


def compressed(raw: bytes) -> bytes:
    """One frame with its size and a checksum."""
    return _zstd.compressor.compress(raw)


def decompressed(frame: bytes) -> bytes:
    """What one whole frame holds; a larger one is refused before memory is taken for it.

    Raises `WireError`.
    """
    try:
        size = zstandard.frame_content_size(frame)
        if size < 0:
            raise WireError("compressed without its size")
        if size > MAX_UNPACKED_BYTES:
            raise WireError(f"claims {size} bytes when unpacked, at most {MAX_UNPACKED_BYTES} are allowed")
        return _zstd.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise WireError(f"not zstd: {exc}") from exc


def packed(raw: bytes, *, compress: bool = True) -> bytes:
    """What is encoded already, behind its codec byte."""
    if compress and len(raw) >= COMPRESS_FROM_BYTES:
        return _ZSTD + compressed(raw)
    return _RAW + raw


def unpacked(data: bytes) -> bytes:
    """What `packed` was given. Raises `WireError` as `unpack`."""
    codec, body = data[:1], data[1:]
    if codec not in CODECS:
        raise WireError(f"unknown codec byte {codec!r}")
    return body if codec == _RAW else decompressed(body)
