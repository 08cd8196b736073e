"""What an HTTP answer's body holds, however a server writes it: bounded bytes, a message's text, an error's words."""

import zlib
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import msgspec

from tasks.errors import EndpointDownError

#: Characters of a server's error text that are shown.
ERROR_CHARACTERS: Final = 200


async def bounded_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body, or an error as soon as it exceeds `limit` bytes, unpacked or not.

    Identity is asked for; some proxies compress all the same, and a bomb must not be taken for an answer.
    """
    encoding = response.headers.get("Content-Encoding", "").lower()
    if encoding not in {"", "identity", "gzip", "deflate"}:
        raise EndpointDownError(f"the endpoint answered with encoding {encoding!r} although identity was asked for")
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding in {"gzip", "deflate"} else None
    pieces, size = [], 0
    try:
        async for raw in response.content.iter_any():
            piece = inflater.decompress(raw, limit - size + 1) if inflater else raw
            size += len(piece)
            if size > limit:
                response.close()
                raise EndpointDownError(f"the answer exceeds {limit} bytes (llm.max_response_bytes)")
            pieces.append(piece)
    except zlib.error as exc:
        raise EndpointDownError(f"the answer is not the {encoding} that it says it is") from exc
    return b"".join(pieces)


def content_of(message: Mapping[str, Any]) -> str:
    """The text of a message: a string, or a list of parts as some servers send it."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def error_text(raw: bytes) -> tuple[str, Any]:
    """Message and code of an error body, whatever its shape."""
    text = raw.decode("utf-8", "replace").strip()
    try:
        data = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        kind = "an HTML page" if text[:1] == "<" else repr(text[:ERROR_CHARACTERS])
        return kind, None
    error = data.get("error", data) if isinstance(data, dict) else data
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail") or msgspec.json.encode(error).decode()
        return str(message)[:ERROR_CHARACTERS], error.get("code") or error.get("type")
    return str(error)[:ERROR_CHARACTERS], None
