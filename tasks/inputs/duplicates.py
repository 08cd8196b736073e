"""Rows of one input that are one destination, by the rule in `tasks.identity`: known at once, for every row.

Little is kept in memory, and the rest in SQLite's private temporary file.
"""

import itertools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from tasks.identity import SAME_PLACE_KM, distance_km, point_km
from tasks.inputs.columns import Identified
from tasks.inputs.scratch import temporary, translated

if TYPE_CHECKING:
    import sqlite3

#: Rows that are kept in memory, 130 bytes each, before they move to disk together.
KEYS_IN_MEMORY: Final = 40_000
#: Bits of a Bloom filter with one hash (https://doi.org/10.1145/362686.362692): a key whose bit is not set is new.
FILTER_BITS: Final = 1 << 25

#: What is remembered of a row with coordinates: line, digest of all it says, coordinates. Of another row it is a
#: number, its line in front of `CONTENT_BITS` of the digest.
_RECORD: Final = struct.Struct("<qIff")
CONTENT_BITS: Final = 31


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A row that was not taken, because the row at `first_line` is the same destination; lines count from 1."""

    line: int
    label: str
    first_line: int
    why: str


class _Earlier(NamedTuple):
    """What is remembered of a row: its line, a digest of all it says, its coordinates."""

    line: int
    content: int
    lat: float
    lon: float


class SeenRows:
    """Remembers every accepted row, in memory while they are few, then in SQLite's private temporary file.

    The file is written many rows at a time, and read only for a row that may not be new.
    """

    def __init__(self) -> None:
        self._few: dict[bytes, bytes | int] = {}
        self._filter = bytearray(FILTER_BITS // 8)
        self._many: sqlite3.Connection | None = None

    def duplicate(self, one: Identified, line: int) -> Duplicate | None:
        """The duplicate that a row is of an earlier one; None: the row is new, and remembered."""
        row = one.destination
        place = None if one.own or row.lat is None or row.lon is None else (row.lat, row.lon)
        content = hash((row.name, row.country, row.region, row.lat, row.lon, *row.extra.items())) % (1 << CONTENT_BITS)
        key = bytes.fromhex(one.key)
        if place is None:
            found = self._setdefault(key, line << CONTENT_BITS | content)
            return None if found is None else _duplicate(one, line, _earlier(found), content, place)
        record = _RECORD.pack(line, content, *place)
        found = self._setdefault(key, record)
        if found is None:
            return None
        first: _Earlier | None = _earlier(found)
        if first and distance_km(place, (first.lat, first.lon)) > SAME_PLACE_KM:
            first = self._in_other_place(key, place, record)
        return first and _duplicate(one, line, first, content, place)

    def is_new(self, id_: str) -> bool:
        """Remember an id that was made elsewhere; False when it was known."""
        return self._setdefault(id_.encode("utf-8", "surrogatepass"), 0) is None

    def close(self) -> None:
        if self._many is not None:
            self._many.close()
            self._many = None

    def _in_other_place(self, key: bytes, place: tuple[float, float], record: bytes) -> _Earlier | None:
        """The row of this key near a place that is far from the key's first one; without one, remember this."""
        home = tuple(int(axis // SAME_PLACE_KM) for axis in point_km(*place))
        for step in itertools.product((-1, 0, 1), repeat=3):
            cube = struct.pack("<3i", *(axis + by for axis, by in zip(home, step, strict=True)))
            for known in _RECORD.iter_unpack(self._records(key + cube)):
                earlier = _Earlier(*known)
                if distance_km(place, (earlier.lat, earlier.lon)) <= SAME_PLACE_KM:
                    return earlier
        cube = key + struct.pack("<3i", *home)
        self._put(cube, self._records(cube) + record)
        return None

    def _setdefault(self, key: bytes, value: bytes | int) -> bytes | int | None:
        """Remember a value under a key that has none; else what it has."""
        known = self._few.get(key)
        if known is None and self._many is not None:
            known = self._from_disk(key)
        if known is None:
            self._put(key, value)
        return known

    def _records(self, key: bytes) -> bytes:
        found = self._few.get(key)
        if found is None and self._many is not None:
            found = self._from_disk(key)
        return found if isinstance(found, bytes) else b""

    def _from_disk(self, key: bytes) -> bytes | int | None:
        assert self._many is not None  # noqa: S101  # the callers know
        bit = hash(key) % FILTER_BITS
        if not self._filter[bit >> 3] & (1 << (bit & 7)):
            return None
        with translated():
            found = self._many.execute("SELECT value FROM seen WHERE key = ?", (key,)).fetchone()
        return found[0] if found else None

    def _put(self, key: bytes, value: bytes | int) -> None:
        self._few[key] = value
        if len(self._few) > KEYS_IN_MEMORY:
            self._move_to_disk()

    def _move_to_disk(self) -> None:
        if self._many is None:
            table = "CREATE TABLE seen (key BLOB PRIMARY KEY, value) WITHOUT ROWID"
            self._many = temporary(table, cache_kib=8192)
        for key in self._few:
            bit = hash(key) % FILTER_BITS
            self._filter[bit >> 3] |= 1 << (bit & 7)
        ordered = sorted(self._few)
        with translated():
            rows = zip(ordered, map(self._few.__getitem__, ordered), strict=True)
            self._many.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?)", rows)
        self._few = {}


def _earlier(found: bytes | int) -> _Earlier:
    if isinstance(found, bytes):
        return _Earlier(*_RECORD.unpack(found))
    return _Earlier(found >> CONTENT_BITS, found % (1 << CONTENT_BITS), 0.0, 0.0)


def _duplicate(
    one: Identified, line: int, first: _Earlier, content: int, place: tuple[float, float] | None
) -> Duplicate:
    return Duplicate(line, one.destination.label, first.line, _why(one, first, content, place))


def _why(one: Identified, first: _Earlier, content: int, place: tuple[float, float] | None) -> str:
    """What makes a row the same as an earlier one, and whether it says something else beside that."""
    row, own = one.destination, one.own
    if own is not None:
        why = f"same {own.column} {own.value}"
    else:
        why = "same name"
        why += " and country" if row.country and not row.region else ", country and region" if row.region else ""
        if place is not None and (apart := distance_km(place, (first.lat, first.lon))) >= 0.1:  # noqa: PLR2004  # 100 m
            why += f", {apart:.1f} km apart"
    return why if content == first.content else f"{why}; what else differs is that of the first"
