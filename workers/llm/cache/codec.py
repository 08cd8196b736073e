"""How a completion is stored: codec byte, version byte, payload.

| codec | version | payload |
|---|---|---|
| 0x10 raw | 1 | the bytes themselves |
| 0x11 zstd | that of the dictionary | a zstd frame with size and checksum |
| 0x12 gzip | 1 | one gzip member |

Whatever is selected, all of them can be read, and every dictionary that ever wrote stays beside this module. What is
stored elsewhere begins with other bytes (`tasks.messages.pack`: 0x00, 0x01), so a foreign value is known as one.

Completions are small (half a KiB to 10 KiB) and alike: keys, months and enumerations repeat in all of them. A
dictionary trained on such answers (docs/_generate/dictionary.py) knows these before the first byte. Source: Collet &
Kucherawy, RFC 8878, section 5.
"""

import base64
import zlib
from functools import cache
from pathlib import Path
from typing import Final

import zstandard

RAW: Final = 0x10
ZSTD: Final = 0x11
GZIP: Final = 0x12
#: Version of the payloads that need no dictionary.
PLAIN: Final = 1
#: Bytes that a completion may have: an answer is bounded by `llm.max_response_bytes`, mostly 4 MiB.
MAX_BYTES: Final = 64 * 1024 * 1024
#: zstd's level: 6 takes three times the time, 4 % of a call's CPU, for 6 to 8 % of the bytes.
ZSTD_LEVEL: Final = 3
GZIP_LEVEL: Final = 6
_GZIP_WINDOW: Final = 31

DICTIONARIES: Final = Path(__file__).with_name("dictionaries")


class CodecError(ValueError):
    """These bytes are no completion of ours: foreign, corrupt, too new or too large."""


def encode(raw: bytes, codec: str) -> bytes:
    """What is stored for some bytes, by `zstd`, `gzip` or not compressed; nothing is stored larger than it is."""
    if codec == "zstd":
        version, compressor = _compressor()
        packed = bytes((ZSTD, version)) + compressor.compress(raw)
    elif codec == "gzip":
        deflate = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        packed = bytes((GZIP, PLAIN)) + deflate.compress(raw) + deflate.flush()
    else:
        return bytes((RAW, PLAIN)) + raw
    return packed if len(packed) < len(raw) + 2 else bytes((RAW, PLAIN)) + raw


def decode(stored: bytes) -> bytes:
    """The bytes that were stored. Raises `CodecError`."""
    if len(stored) < 2:  # noqa: PLR2004  # codec and version
        raise CodecError("shorter than its head")
    codec, version, payload = stored[0], stored[1], stored[2:]
    if codec == ZSTD:
        return _from_zstd(version, payload)
    if codec == RAW and version == PLAIN:
        return payload
    if codec == GZIP and version == PLAIN:
        return _from_gzip(payload)
    raise CodecError(f"codec 0x{codec:02x} version {version} is foreign or too new")


def has_checksum(stored: bytes) -> bool:
    """Whether `decode` notices a bit that was changed."""
    return stored[:1] != bytes((RAW,))


def _from_zstd(version: int, payload: bytes) -> bytes:
    try:
        # The frame's own word is believed by the library, whatever the bound: so it is read first.
        size = zstandard.frame_content_size(payload)
        if not 0 <= size <= MAX_BYTES:
            raise CodecError(f"says that it has {size} bytes")
        return _decompressor(version).decompress(payload, max_output_size=MAX_BYTES, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise CodecError(f"zstd: {exc}") from exc


def _from_gzip(payload: bytes) -> bytes:
    inflate = zlib.decompressobj(_GZIP_WINDOW)
    try:
        raw = inflate.decompress(payload, MAX_BYTES)
    except zlib.error as exc:
        raise CodecError(f"gzip: {exc}") from exc
    if not inflate.eof or inflate.unused_data:
        raise CodecError("gzip: cut off, too large, or more than one member")
    return raw


def versions() -> list[int]:
    return sorted(int(path.stem) for path in DICTIONARIES.glob("*.b64"))


@cache
def _dictionary(version: int) -> zstandard.ZstdCompressionDict:
    path = DICTIONARIES / f"{version}.b64"
    if not path.exists():
        raise CodecError(f"zstd dictionary {version} is foreign or too new")
    return zstandard.ZstdCompressionDict(base64.b64decode(path.read_text("ascii")))


@cache
def _compressor() -> tuple[int, zstandard.ZstdCompressor]:
    """The newest dictionary writes. One thread at a time: the loop's."""
    version = versions()[-1]
    dictionary = _dictionary(version)
    dictionary.precompute_compress(level=ZSTD_LEVEL)
    return version, zstandard.ZstdCompressor(
        level=ZSTD_LEVEL, dict_data=dictionary, write_checksum=True, write_content_size=True, write_dict_id=False
    )


@cache
def _decompressor(version: int) -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(dict_data=_dictionary(version))
