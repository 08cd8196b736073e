"""Hashes out of Redis, checked where they are read: any program may have written them."""

import contextlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from redis import Redis, ResponseError

from tasks.connection import text_of
from tasks.errors import UnreadableError
from tasks.storable import MAX_WHOLE
from tasks.texts import clean_line


def replies_of(redis: Redis, hashes: Iterable[str]) -> list[Any]:
    """Redis's reply for each of these hashes in one round trip: a key of another type is an error in its place."""
    with redis.pipeline(transaction=False) as pipeline:
        for key in hashes:
            pipeline.hgetall(key)
        return pipeline.execute(raise_on_error=False)


def texts(reply: Any) -> dict[str, str]:
    """A hash's fields as texts; bytes that are no UTF-8 become U+FFFD.

    Raises:
        UnreadableError: the key holds no hash. `reply` is then the error of Redis, out of a pipeline.
    """
    if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
        raise UnreadableError("its key holds no hash")
    if isinstance(reply, Exception):
        raise reply
    return {text_of(name): text_of(value) for name, value in reply.items()}


def whole(fields: Mapping[str, str], name: str) -> int:
    """A whole number from 0 on; 0 where the field is missing or empty. Raises UnreadableError: it is none."""
    text = fields.get(name) or "0"
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= MAX_WHOLE):  # noqa: PLR2004  # digits
        raise UnreadableError(f"{name} is {shown(text)}, expected a whole number from 0 on")
    return int(text)


def number(fields: Mapping[str, str], name: str) -> float | None:
    """A finite number from 0 on; None where the field is missing or empty. Raises UnreadableError: it is none."""
    text = fields.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_WHOLE:
        raise UnreadableError(f"{name} is {shown(text)}, expected a number from 0 on")
    return value


def amounts(reply: Any, names: Iterable[str] | None = None) -> dict[str, float]:
    """The fields of a hash that are finite numbers, all or those named; what is none is left out."""
    try:
        found = texts(reply)
    except UnreadableError:
        return {}  # shown as not known
    values: dict[str, float] = {}
    for name in found if names is None else [name for name in names if name in found]:
        try:
            value = float(found[name])
        except ValueError:
            continue  # left out, as the caller is told
        if math.isfinite(value):
            values[name] = value
    return values


def whole_amounts(reply: Any) -> dict[str, int]:
    """As `amounts`, of whole numbers from 0 on: exact, also beyond what a float holds."""
    found: dict[str, int] = {}
    for name, text in texts(reply).items() if isinstance(reply, Mapping) else ():
        with contextlib.suppress(UnreadableError):  # left out: shown as not known
            found[name] = whole({name: text}, name)
    return found


def shown(text: str) -> str:
    """A text that should not be there, for a message."""
    line = clean_line(text)
    return repr(line if len(line) <= 40 else f"{line[:39]}…")  # noqa: PLR2004  # characters
