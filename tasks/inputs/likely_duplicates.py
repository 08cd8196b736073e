"""Rows of one input that may be one place although they are two destinations; compared when all of it was read.

Compared are names that are equal but for accents and punctuation, ids of public catalogues beside ids of their own,
and places within `NEAR_KM`. All rows are in SQLite's private temporary file meanwhile, many in one blob: few are
compared.
"""

import itertools
import operator
import re
import string
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from tasks.identity import SAME_PLACE_KM, distance_km, normalise, own_ids, point_km
from tasks.inputs.columns import Identified
from tasks.inputs.scratch import temporary, translated

#: Accepted rows written at once.
ROWS_TOGETHER: Final = 500
#: Blobs of rows that are kept unpacked while rows are compared.
KEPT_BLOCKS: Final = 64
#: Kilometres within which two destinations may be one.
NEAR_KM: Final = 5.0
#: Kilometres: an edge of the cubes into which places are sorted.
CUBE_KM: Final = 10.0
#: Rows with one folded name, or in one cube, that are compared with each other; more are a crowd, not duplicates.
MAX_COMPARED: Final = 50
#: Likely duplicates that are looked for.
MAX_LIKELY: Final = 10_000
#: Share of the longer of two names that both must begin with to be spellings of one.
ALIKE: Final = 0.75

#: Accents of Latin, Greek and Cyrillic letters; not the vowels of other scripts.
_ACCENTS: Final = re.compile("[\u0300-\u036f]")
#: Blanks and punctuation between words, of ASCII and of others.
_NO_PUNCTUATION: Final = dict.fromkeys(map(ord, string.whitespace + string.punctuation))
_SEPARATORS: Final = re.compile("[\\s\u00a1-\u00bf\u2010-\u205e\u3000-\u3003\u30fb]+")


@dataclass(frozen=True, slots=True)
class LikelyDuplicate:
    """Two rows that were both taken and may be one place."""

    line: int
    label: str
    first_line: int
    first_label: str
    why: str


class _Row(NamedTuple):
    """An accepted row as it is compared. `number` counts rows: several may begin on one line."""

    number: int
    line: int
    name: str
    country: str | None
    region: str | None
    lat: float | None
    lon: float | None
    known_as: str | None

    @property
    def place(self) -> tuple[float, float] | None:
        return None if self.lat is None or self.lon is None else (self.lat, self.lon)

    @property
    def label(self) -> str:
        return f"{self.name}, {self.country}" if self.country else self.name


class LikelyDuplicates:
    """Finds accepted rows that may be one place. Use as a context manager; `add` all rows, then ask for `found`."""

    def __init__(self) -> None:
        self._rows: list[tuple[Identified, int]] = []
        self._count = 0
        self._disk: _Disk | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._disk is not None:
            self._disk.database.close()
            self._disk = None

    def add(self, one: Identified, line: int) -> None:
        self._rows.append((one, line))
        if len(self._rows) >= ROWS_TOGETHER:
            self._flush()

    def found(self) -> Iterator[LikelyDuplicate]:
        """Pairs of rows that may be one place, at most `MAX_LIKELY`; each later row stands in one pair."""
        disk = self._flush()
        told: set[int] = set()
        for first, later, why in itertools.chain(_by_id(disk), _by_name(disk), _by_place(disk)):
            if later.number in told:
                continue
            told.add(later.number)
            yield LikelyDuplicate(later.line, later.label, first.line, first.label, why)
            if len(told) >= MAX_LIKELY:
                return

    def _flush(self) -> "_Disk":
        self._disk = self._disk or _Disk()
        rows: list[_Saved] = []
        folded: list[tuple[int, int]] = []
        cubes: list[tuple[int, int]] = []
        ids: list[tuple[str, int]] = []
        for number, (one, line) in enumerate(self._rows, start=self._count):
            row, own = one.destination, one.own
            lat, lon = row.lat, row.lon
            known_as = f"{own.column} {own.value}" if own else None
            rows.append((line, row.name, row.country, row.region, lat, lon, known_as))
            folded.append((hash(_folded(row.name)), number))
            if own and not own.is_public:
                public = (each for each in own_ids(row.extra) if each.is_public)
                ids += [(f"{each.catalogue} {each.value}", number) for each in public]
            if lat is not None and lon is not None:
                cubes += [(cube, number) for cube in _cubes_of(lat, lon)]
        self._count += len(self._rows)
        self._rows = []
        self._disk.write(rows, folded, cubes, ids)
        return self._disk


_Saved = tuple[int, str, str | None, str | None, float | None, float | None, str | None]


class _Disk:
    """The rows in blobs of `ROWS_TOGETHER`, and the tables that say which of them are compared."""

    def __init__(self) -> None:
        self.database = temporary(
            "CREATE TABLE rows (block INTEGER PRIMARY KEY, packed BLOB)",
            "CREATE TABLE names (folded INTEGER, number INTEGER)",
            "CREATE TABLE cubes (cube INTEGER, number INTEGER)",
            "CREATE TABLE ids (id, number INTEGER)",
            "CREATE TABLE pairs (a INTEGER, b INTEGER, km REAL, alike INTEGER, PRIMARY KEY (a, b)) WITHOUT ROWID",
            cache_kib=2048,
        )
        self._decoder = msgspec.msgpack.Decoder(list[_Saved])
        self._block = lru_cache(maxsize=KEPT_BLOCKS)(self._read_block)

    def write(
        self,
        rows: list[_Saved],
        folded: list[tuple[int, int]],
        cubes: list[tuple[int, int]],
        ids: list[tuple[str, int]],
    ) -> None:
        if not rows:
            return
        with translated():
            packed = msgspec.msgpack.encode(rows)
            self.database.execute("INSERT INTO rows VALUES (?, ?)", (folded[0][1] // ROWS_TOGETHER, packed))
            self.database.executemany("INSERT INTO names VALUES (?, ?)", folded)
            if cubes:
                self.database.executemany("INSERT INTO cubes VALUES (?, ?)", cubes)
            if ids:
                self.database.executemany("INSERT INTO ids VALUES (?, ?)", ids)

    def row(self, number: int) -> _Row:
        return _Row(number, *self._block(number // ROWS_TOGETHER)[number % ROWS_TOGETHER])

    def _read_block(self, block: int) -> list[_Saved]:
        (packed,) = self.database.execute("SELECT packed FROM rows WHERE block = ?", (block,)).fetchone()
        return self._decoder.decode(packed)

    def groups(self, query: str) -> Iterator[list[int]]:
        """The numbers of rows that a query found, by what they share: its second column."""
        with translated():
            for _, group in itertools.groupby(self.database.execute(query), key=operator.itemgetter(1)):
                yield [number for number, _ in itertools.islice(group, MAX_COMPARED)]


_Pair = tuple[_Row, _Row, str]
_SAME_NAMES: Final = """
    WITH same AS (SELECT folded, min(number) AS first FROM names GROUP BY folded HAVING count(*) > 1)
    SELECT number, folded FROM names JOIN same USING (folded) ORDER BY first, number
"""
_SAME_IDS: Final = """
    WITH same AS (SELECT id, min(number) AS first FROM ids GROUP BY id HAVING count(*) > 1)
    SELECT number, id FROM ids JOIN same USING (id) ORDER BY first, id, number
"""
_SAME_CUBES: Final = (
    f"SELECT number, cube FROM cubes WHERE cube IN "  # noqa: S608  # a constant
    f"(SELECT cube FROM cubes GROUP BY cube HAVING count(*) BETWEEN 2 AND {MAX_COMPARED}) ORDER BY cube, number"
)
_PAIR: Final = "INSERT OR IGNORE INTO pairs VALUES (?, ?, ?, ?)"
#: Pairs of near rows, without those that have a third row near them: that is a crowd.
_CLOSE_PAIRS: Final = """
    WITH crowd AS (
        SELECT number FROM (SELECT a AS number FROM pairs UNION ALL SELECT b FROM pairs)
        GROUP BY number HAVING count(*) > 1
    )
    SELECT a, b, km FROM pairs
    WHERE alike OR (a NOT IN (SELECT number FROM crowd) AND b NOT IN (SELECT number FROM crowd))
    ORDER BY km, a, b
"""


def _by_id(disk: _Disk) -> Iterator[_Pair]:
    """Rows that have ids of their user's own, and share one of a public catalogue."""
    for numbers in disk.groups(_SAME_IDS):
        first, *others = map(disk.row, numbers)
        yield from ((first, later, "the same Wikidata or GeoNames id") for later in others)


def _by_name(disk: _Disk) -> Iterator[_Pair]:
    """Rows whose folded names are equal, and that nothing else tells apart."""
    for numbers in disk.groups(_SAME_NAMES):
        rows = list(map(disk.row, numbers))
        for at, later in enumerate(rows):
            pairs = ((first, why) for first in rows[:at] if (why := _why_one(first, later)))
            if pair := next(pairs, None):
                yield pair[0], later, pair[1]


def _by_place(disk: _Disk) -> Iterator[_Pair]:
    """Rows within `NEAR_KM` of each other that are spelt alike or in two scripts, or have no third row near.

    A file of one city's districts has many rows near each other, and they are not named.
    """
    near: list[tuple[int, int, float, bool]] = []
    for numbers in disk.groups(_SAME_CUBES):
        near += _near_pairs(list(map(disk.row, numbers)))
        if len(near) >= ROWS_TOGETHER:
            with translated():
                disk.database.executemany(_PAIR, near)
            near = []
    with translated():
        disk.database.executemany(_PAIR, near)
        for first, later, apart in disk.database.execute(_CLOSE_PAIRS):
            yield disk.row(first), disk.row(later), f"{apart:.1f} km apart"


def _near_pairs(rows: list[_Row]) -> Iterator[tuple[int, int, float, bool]]:
    for first, later in itertools.combinations(rows, 2):
        if first.place and later.place and (apart := distance_km(first.place, later.place)) <= NEAR_KM:
            yield first.number, later.number, apart, _is_alike(first.name, later.name)


def _why_one(first: _Row, later: _Row) -> str:
    """Why two rows of one folded name may be one place; empty where something tells them apart."""
    for one, other in ((first.country, later.country), (first.region, later.region)):
        if one and other and _folded(one) != _folded(other):
            return ""
    if first.place and later.place and distance_km(first.place, later.place) > SAME_PLACE_KM:
        return ""
    if normalise(first.name) != normalise(later.name):
        return "the same name but for accents and punctuation"
    if first.known_as != later.known_as:
        return f"the same name, but {first.known_as or 'no id'} and {later.known_as or 'no id'}"
    return "the same name; only one of them says more"


def _is_alike(one: str, other: str) -> bool:
    """Whether two names that differ may be one name: in two scripts, or with another ending.

    `Montmartre Nord` and `Montmartre Sud` are not: they share a word, and another one tells them apart.
    """
    if _is_latin(one) != _is_latin(other):
        return True
    if set(normalise(one).split()) & set(normalise(other).split()):
        return False
    folded = _folded(one), _folded(other)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*folded, strict=False)))
    return shared >= ALIKE * max(map(len, folded))


def _is_latin(name: str) -> bool:
    return any(char.isascii() and char.isalpha() for char in name)


#: Letters that have no accent to lose, and what they are written as without them.
_LETTERS: Final = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "\u0131": "i"}
)


def _folded(name: str) -> str:
    """A name without case, accents, blanks and punctuation; the name itself where nothing else is in it."""
    if name.isascii():
        # The usual name has letters, digits and blanks: translating takes five times as long.
        text = name.lower().replace(" ", "")
        return text if text.isalnum() else text.translate(_NO_PUNCTUATION) or name
    text = normalise(name)
    if not text.isascii():
        text = unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFKD", text.translate(_LETTERS))))
    return _SEPARATORS.sub("", text).translate(_NO_PUNCTUATION) or text


def _cubes_of(lat: float, lon: float) -> list[int]:
    """The numbers of the cubes within half of `NEAR_KM` of a place: two places within `NEAR_KM` share one."""
    half = NEAR_KM / 2
    cubes = [0]
    for axis in point_km(lat, lon):
        low, high = int((axis - half) // CUBE_KM), int((axis + half) // CUBE_KM)
        # The Earth is 1,275 cubes wide.
        cubes = [4096 * cube + low for cube in cubes] + ([4096 * cube + high for cube in cubes] if high > low else [])
    return cubes
