"""The body of an HTTP answer, within a bound, however a server packs it."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Final

import aiohttp

from tasks.errors import EndpointDownError

#: Bytes that are unpacked at a time.
PIECE_BYTES: Final = 256 * 1024


def _inflater(encoding: str) -> "zlib._Decompress | None":
    if encoding not in {"", "identity", "gzip", "deflate"}:
        raise EndpointDownError(f"the endpoint answered with encoding {encoding!r} although identity was asked for")
    return zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding in {"gzip", "deflate"} else None


async def bounded_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body; an error as soon as it exceeds `limit` bytes, unpacked or not: some proxies compress unasked."""
    encoding = response.headers.get("Content-Encoding", "").lower()
    inflater = _inflater(encoding)
    pieces, size = [], 0
    try:
        while raw := await response.content.readany():
            piece = inflater.decompress(raw, limit - size + 1) if inflater else raw
            size += len(piece)
            if size > limit:
                response.close()
                raise EndpointDownError(f"the answer exceeds {limit} bytes (llm.max_response_bytes)")
            pieces.append(piece)
    except zlib.error as exc:
        raise EndpointDownError(f"the answer is not the {encoding} that it says it is") from exc
    return b"".join(pieces)


async def unpacked_body(response: aiohttp.ClientResponse, timeout_seconds: float) -> AsyncIterator[bytes]:
    """A body of any size as it comes, unpacked.

    Raises:
        TimeoutError: no byte came within `timeout_seconds`.
        EndpointDownError: it is not packed as it says, or ends too early.
    """
    encoding = response.headers.get("Content-Encoding", "").lower()
    inflater = _inflater(encoding)
    is_whole = True
    while True:
        async with asyncio.timeout(timeout_seconds):
            raw = await response.content.readany()
        if not raw:
            break
        if inflater is None:
            yield raw
            continue
        try:
            while inflater and raw:
                yield inflater.decompress(raw, PIECE_BYTES)
                is_whole = inflater.eof
                raw = inflater.unused_data if is_whole else inflater.unconsumed_tail
                # A gzip file may have several members.
                inflater = _inflater(encoding) if is_whole else inflater
        except zlib.error as exc:
            raise EndpointDownError(f"the answer is not the {encoding} that it says it is") from exc
    if not is_whole:
        raise EndpointDownError(f"the answer ends in the middle of its {encoding}")
