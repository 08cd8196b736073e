"""What any database can keep of an entry of the results stream.

PostgreSQL refuses U+0000; both databases refuse a lone surrogate and an integer beyond 64 bits. `flaw` names the field
that holds one; `lesser` is a form that no database refuses: of a result a failure, with its usage.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, TypeVar, cast, get_args

import msgspec

from tasks.frames import MAX_UNPACKED_BYTES, WireError, packed
from tasks.messages import Destination, Failure, Result, Spent, StreamEntry, Usage, pack, unpack
from tasks.texts import clean_line, cleaned

T = TypeVar("T")

#: The largest whole number that a database keeps.
MAX_WHOLE: Final = 2**63 - 1
#: The stage and the class of a failure whose result was refused.
STORE_STAGE: Final = "store"
STORE_ERROR: Final = "UnusableEntryError"
MAX_MESSAGE: Final = 500

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
#: The same controls as they stand in JSON: escaped, or, those from U+0080 on, in two bytes of UTF-8.
_ESCAPED: Final = re.compile(rb"\\(?:[bfr]|u00)")
_C1_BYTES: Final = re.compile(rb"\xc2[\x80-\x9f]")


def clean_destination(destination: Destination) -> Destination:
    """The destination without control characters in what its user wrote."""
    d = destination
    texts = (d.name, d.country or "", d.region or "", *d.extra, *d.extra.values())
    if all(map(str.isprintable, texts)):
        return d
    return msgspec.structs.replace(
        d,
        name=clean_line(d.name),
        country=d.country and clean_line(d.country),
        region=d.region and clean_line(d.region),
        extra={clean_line(key): cleaned(value) for key, value in d.extra.items()},
    )


def has_controls(json: bytes) -> bool:
    """Whether a JSON text may hold control characters but tab and newline; True also for an escaped backslash."""
    # A search for one byte costs next to nothing, and most profiles hold none of these.
    return (
        (b"\\" in json and bool(_ESCAPED.search(json)))
        or b"\x7f" in json
        or (b"\xc2" in json and bool(_C1_BYTES.search(json)))
    )


def flaw(value: Any) -> str:
    """Which field of a value a database refuses, and why; empty where none is found."""
    try:
        return next((f"{place} {why}" for place, leaf in _leaves(value, "") if (why := _why(leaf))), "")
    except RecursionError:
        return "it is nested too deeply"


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every text and number of a value, with the path to it."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _leaves(getattr(value, name), f"{place}.{name}" if place else name)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield f"a key of {place}", key
            yield from _leaves(each, f"{place}.{clean_line(str(key))}")
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _leaves(each, f"{place}[{number}]")
    else:
        yield place, value


def _why(leaf: Any) -> str:
    if isinstance(leaf, str):
        if found := _SURROGATE.search(leaf):
            return f"holds a lone surrogate, U+{ord(found[0]):04X}"
        return "holds the character U+0000" if "\0" in leaf else ""
    if isinstance(leaf, int) and abs(leaf) > MAX_WHOLE:
        return "is a whole number beyond 64 bits"
    return f"is {leaf}, a number is due" if isinstance(leaf, float) and not math.isfinite(leaf) else ""


def storable(value: T, most: int | None = None) -> T:
    """The value as any database keeps it: text cleaned, numbers within 64 bits; texts of at most `most` characters."""
    found: Any = value
    if isinstance(value, msgspec.Struct):
        fields = {field.name: _field(field, getattr(value, field.name), most) for field in _fields(type(value))}
        found = msgspec.structs.replace(value, **fields)
    elif isinstance(value, Mapping):
        found = {storable(key, most): storable(each, most) for key, each in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(storable(each, most) for each in value)
    elif isinstance(value, str):
        found = cleaned(value)[:most]
    elif isinstance(value, int) and not isinstance(value, bool):
        found = max(-MAX_WHOLE, min(MAX_WHOLE, value))
    return cast("T", found)


def _field(field: msgspec.structs.FieldInfo, value: Any, most: int | None) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if type(None) in get_args(field.type) else 0.0
    return storable(value, most)


def _fields(struct: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(struct)


def storable_usage(found: Any) -> Usage:
    """A usage out of whatever says one: a number that cannot be true counts as 0, a price as not known."""
    known = found if isinstance(found, Mapping) else msgspec.structs.asdict(found) if found is not None else {}
    return Usage(**{field.name: _amount(known.get(field.name, field.default), field.default) for field in _USAGE})


_USAGE: Final = msgspec.structs.fields(Usage)
#: The whole numbers among a usage's values, and the US dollars.
whole_numbers: Final = itemgetter(*(n for n, field in enumerate(_USAGE) if field.type is int))
_dollars: Final = itemgetter(*(n for n, field in enumerate(_USAGE) if field.type is not int))


def are_amounts(*usages: Sequence[Any]) -> bool:
    """Whether the values of usages are amounts: from 0 to what 64 bits hold, dollars None where they are not known."""
    columns = tuple(zip(*usages, strict=True))
    whole, usd = whole_numbers(columns), [each or 0.0 for column in _dollars(columns) for each in column]
    is_whole = min(map(min, whole)) >= 0 and max(map(max, whole)) <= MAX_WHOLE
    return is_whole and min(usd) >= 0 and sum(usd) <= MAX_WHOLE


def _amount(value: Any, default: Any) -> Any:
    is_amount = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_WHOLE
    if isinstance(default, int):
        return int(value) if is_amount else 0
    return float(value) if is_amount else None


def lesser(entry: StreamEntry, why: str, most: int | None = None) -> StreamEntry:
    """The form of an entry that no database refuses; a result becomes a failure that says `why`."""
    if isinstance(entry, Result):
        failure = Failure(STORE_STAGE, STORE_ERROR, f"its result cannot be stored: {why}", entry.attempt)
        if entry.failure is not None and entry.profile is None:
            failure = msgspec.structs.replace(entry.failure, message=f"{entry.failure.message} ({why})")
        failure = msgspec.structs.replace(failure, message=clean_line(failure.message)[:MAX_MESSAGE])
        entry = msgspec.structs.replace(entry, profile=None, failure=failure)
    if isinstance(entry, Result | Spent):
        entry = msgspec.structs.replace(entry, usage=storable_usage(entry.usage))
    return storable(entry, most)


def entry_fields(entry: StreamEntry, *, compress: bool = True) -> dict[Any, Any]:
    """The fields of one entry on the results stream; in its lesser form where it cannot be encoded."""
    try:
        raw = msgspec.msgpack.encode(entry)
        # A packed profile is compressed already.
        compress = compress and not (isinstance(entry, Result) and entry.profile)
        if len(raw) > MAX_UNPACKED_BYTES:
            raise WireError(f"it takes {len(raw):,} bytes, at most {MAX_UNPACKED_BYTES:,} are allowed")
        return {"b": packed(raw, compress=compress)}
    except (UnicodeError, OverflowError, TypeError, ValueError, RecursionError) as exc:
        return {"b": pack(lesser(entry, flaw(entry) or f"{type(exc).__name__}: {exc}"), compress=compress)}


def salvaged(data: bytes, why: str) -> Result | Spent | None:
    """What an entry that cannot be decoded still tells: whose result it is, as a failure, or what was spent."""
    try:
        found = unpack(data, dict[str, Any])
    except WireError:
        return None
    ids = found.get("job_id"), found.get("destination_id")
    if found.get("type") not in {"result", "spent"} or not all(isinstance(each, str) and each for each in ids):
        return None
    attempt, at, elapsed = found.get("attempt"), found.get("at"), found.get("elapsed_ms")
    spent = Spent(
        job_id=str(ids[0]),
        destination_id=str(ids[1]),
        attempt=attempt if isinstance(attempt, int) else 0,
        usage=storable_usage(found.get("usage") if isinstance(found.get("usage"), dict) else None),
        worker=str(found.get("worker")),
        at=at if isinstance(at, float) else 0.0,
        elapsed_ms=elapsed if isinstance(elapsed, float) else 0.0,
        lost=found.get("lost") is True,
    )
    if found["type"] == "spent":
        return storable(spent)
    shared = {name: getattr(spent, name) for name in Result.__struct_fields__ if hasattr(spent, name)}
    return cast("Result", lesser(Result(**shared), why))
