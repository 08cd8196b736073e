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

#: Rows that are kept in memory before they move to disk together.
KEYS_IN_MEMORY: Final = 20_000
#: Bits of a Bloom filter with one hash (https://doi.org/10.1145/362686.362692): a key whose bit is not set is new.
FILTER_BITS: Final = 1 << 25

#: What is remembered of a row: line, digest of all it says, coordinates.
_RECORD: Final = struct.Struct("<qIff")


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
        self._few: dict[bytes, bytes] = {}
        self._filter = bytearray(FILTER_BITS // 8)
        self._many: sqlite3.Connection | None = None

    def duplicate(self, one: Identified, line: int) -> Duplicate | None:
        """The duplicate that a row is of an earlier one; None: the row is new, and remembered."""
        row = one.destination
        place = None if one.own or row.lat is None or row.lon is None else (row.lat, row.lon)
        content = hash((row.name, row.country, row.region, row.lat, row.lon, *row.extra.items())) & 0xFFFFFFFF
        record = _RECORD.pack(line, content, *(place or (0.0, 0.0)))
        key = bytes.fromhex(one.key)
        found = self._setdefault(key, record)
        if found is None:
            return None
        first: _Earlier | None = _Earlier(*_RECORD.unpack(found))
        if place and first and distance_km(place, (first.lat, first.lon)) > SAME_PLACE_KM:
            first = self._in_other_place(key, place, record)
        return first and Duplicate(line, row.label, first.line, _why(one, first, content, place))

    def is_new(self, id_: str) -> bool:
        """Remember an id that was made elsewhere; False when it was known."""
        return self._setdefault(id_.encode("utf-8", "surrogatepass"), b"") is None

    def close(self) -> None:
        if self._many is not None:
            self._many.close()
            self._many = None

    def _in_other_place(self, key: bytes, place: tuple[float, float], record: bytes) -> _Earlier | None:
        """The row of this key near a place that is far from the key's first one; without one, remember this."""
        home = tuple(int(axis // SAME_PLACE_KM) for axis in point_km(*place))
        for step in itertools.product((-1, 0, 1), repeat=3):
            cube = struct.pack("<3i", *(axis + by for axis, by in zip(home, step, strict=True)))
            for known in _RECORD.iter_unpack(self._get(key + cube) or b""):
                earlier = _Earlier(*known)
                if distance_km(place, (earlier.lat, earlier.lon)) <= SAME_PLACE_KM:
                    return earlier
        cube = key + struct.pack("<3i", *home)
        self._put(cube, (self._get(cube) or b"") + record)
        return None

    def _setdefault(self, key: bytes, value: bytes) -> bytes | None:
        """Remember a value under a key that has none; else what it has."""
        bit = hash(key) % FILTER_BITS
        known = self._get(key) if self._filter[bit >> 3] & (1 << (bit & 7)) else None
        if known is None:
            self._put(key, value)
        return known

    def _get(self, key: bytes) -> bytes | None:
        known = self._few.get(key)
        if known is None and self._many is not None:
            with translated():
                found = self._many.execute("SELECT value FROM seen WHERE key = ?", (key,)).fetchone()
            known = found[0] if found else None
        return known

    def _put(self, key: bytes, value: bytes) -> None:
        self._few[key] = value
        bit = hash(key) % FILTER_BITS
        self._filter[bit >> 3] |= 1 << (bit & 7)
        if len(self._few) >= KEYS_IN_MEMORY:
            if self._many is None:
                table = "CREATE TABLE seen (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID"
                self._many = temporary(table, cache_kib=8192)
            with translated():
                self._many.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?)", sorted(self._few.items()))
            self._few = {}


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
