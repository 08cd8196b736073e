"""The body of an HTTP answer, within a bound, however a server packs it."""

import zlib

import aiohttp

from tasks.errors import EndpointDownError


async def bounded_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body; an error as soon as it exceeds `limit` bytes, unpacked or not: some proxies compress unasked."""
    encoding = response.headers.get("Content-Encoding", "").lower()
    if encoding not in {"", "identity", "gzip", "deflate"}:
        raise EndpointDownError(f"the endpoint answered with encoding {encoding!r} although identity was asked for")
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding in {"gzip", "deflate"} else None
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
