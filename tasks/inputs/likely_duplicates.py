"""Rows of one input that may be one place although they are two destinations; compared when all of it was read.

Compared are names that are equal but for accents and punctuation, ids of public catalogues beside ids of their own,
and places within `NEAR_KM`. All rows are in SQLite's private temporary file meanwhile.
"""

import itertools
import re
import sqlite3
import string
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NamedTuple, Self

from tasks.identity import SAME_PLACE_KM, distance_km, normalise, own_ids, point_km
from tasks.inputs.columns import Identified
from tasks.inputs.scratch import temporary, translated

#: Accepted rows written at once.
ROWS_TOGETHER: Final = 500
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
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def add(self, one: Identified, line: int) -> None:
        self._rows.append((one, line))
        if len(self._rows) >= ROWS_TOGETHER:
            self._flush()

    def found(self) -> Iterator[LikelyDuplicate]:
        """Pairs of rows that may be one place, at most `MAX_LIKELY`; each later row stands in one pair."""
        database = self._flush()
        told: set[int] = set()
        for first, later, why in itertools.chain(_by_id(database), _by_name(database), _by_place(database)):
            if later.number in told:
                continue
            told.add(later.number)
            yield LikelyDuplicate(later.line, later.label, first.line, first.label, why)
            if len(told) >= MAX_LIKELY:
                return

    def _flush(self) -> sqlite3.Connection:
        if self._database is None:
            self._database = temporary(
                "CREATE TABLE rows "
                "(number INTEGER PRIMARY KEY, line INTEGER, folded INTEGER, name, country, region, lat, lon, known_as)",
                "CREATE TABLE cubes (cube INTEGER, number INTEGER)",
                "CREATE TABLE ids (id, number INTEGER)",
                "CREATE TABLE pairs (a INTEGER, b INTEGER, km REAL, alike INTEGER, PRIMARY KEY (a, b)) WITHOUT ROWID",
                cache_kib=2048,
            )
        rows: list[tuple[int, int, int, str, str | None, str | None, float | None, float | None, str | None]] = []
        cubes: list[tuple[int, int]] = []
        ids: list[tuple[str, int]] = []
        for number, (one, line) in enumerate(self._rows, start=self._count + 1):
            row, own = one.destination, one.own
            lat, lon = row.lat, row.lon
            known_as = f"{own.column} {own.value}" if own else None
            rows.append((number, line, hash(_folded(row.name)), row.name, row.country, row.region, lat, lon, known_as))
            if own and not own.is_public:
                public = (each for each in own_ids(row.extra) if each.is_public)
                ids += [(f"{each.catalogue} {each.value}", number) for each in public]
            if lat is not None and lon is not None:
                cubes += [(cube, number) for cube in _cubes_of(lat, lon)]
        self._count += len(self._rows)
        self._rows = []
        with translated():
            self._database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._database.executemany("INSERT INTO cubes VALUES (?, ?)", cubes)
            self._database.executemany("INSERT INTO ids VALUES (?, ?)", ids)
        return self._database


_Pair = tuple[_Row, _Row, str]
_COLUMNS: Final = "number, line, name, country, region, lat, lon, known_as"
_SAME_NAMES: Final = f"""
    WITH same AS (SELECT folded, min(number) AS first FROM rows GROUP BY folded HAVING count(*) > 1)
    SELECT {_COLUMNS}, folded FROM rows JOIN same USING (folded) ORDER BY first, number
"""  # noqa: S608  # constants
_SAME_IDS: Final = f"""
    WITH same AS (SELECT id, min(number) AS first FROM ids GROUP BY id HAVING count(*) > 1)
    SELECT {", ".join(f"rows.{name}" for name in _COLUMNS.split(", "))}, ids.id
    FROM same JOIN ids USING (id) JOIN rows USING (number) ORDER BY first, id, rows.number
"""  # noqa: S608  # constants
_SAME_CUBES: Final = (
    f"SELECT {', '.join(f'rows.{name}' for name in _COLUMNS.split(', '))}, cube FROM cubes JOIN rows USING (number) "  # noqa: S608
    f"WHERE cube IN (SELECT cube FROM cubes GROUP BY cube HAVING count(*) BETWEEN 2 AND {MAX_COMPARED}) "
    "ORDER BY cube, number"
)
_ONE: Final = f"SELECT {_COLUMNS} FROM rows WHERE number = ?"  # noqa: S608  # constants
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


def _by_id(database: sqlite3.Connection) -> Iterator[_Pair]:
    """Rows that have ids of their user's own, and share one of a public catalogue."""
    with translated():
        for _, group in itertools.groupby(database.execute(_SAME_IDS), key=lambda row: row[-1]):
            first, *others = (_Row(*row[:-1]) for row in itertools.islice(group, MAX_COMPARED))
            yield from ((first, later, "the same Wikidata or GeoNames id") for later in others)


def _by_name(database: sqlite3.Connection) -> Iterator[_Pair]:
    """Rows whose folded names are equal, and that nothing else tells apart."""
    with translated():
        for _, group in itertools.groupby(database.execute(_SAME_NAMES), key=lambda row: row[-1]):
            rows = [_Row(*row[:-1]) for row in itertools.islice(group, MAX_COMPARED)]
            for at, later in enumerate(rows):
                pairs = ((first, why) for first in rows[:at] if (why := _why_one(first, later)))
                if pair := next(pairs, None):
                    yield pair[0], later, pair[1]


def _by_place(database: sqlite3.Connection) -> Iterator[_Pair]:
    """Rows within `NEAR_KM` of each other that are spelt alike or in two scripts, or have no third row near.

    A file of one city's districts has many rows near each other, and they are not named.
    """
    near: list[tuple[int, int, float, bool]] = []
    with translated():
        for _, group in itertools.groupby(database.execute(_SAME_CUBES), key=lambda row: row[-1]):
            near += _near_pairs([_Row(*row[:-1]) for row in group])
            if len(near) >= ROWS_TOGETHER:
                database.executemany(_PAIR, near)
                near = []
        database.executemany(_PAIR, near)
        for *pair, apart in database.execute(_CLOSE_PAIRS):
            first, later = (_Row(*database.execute(_ONE, (number,)).fetchone()) for number in pair)
            yield first, later, f"{apart:.1f} km apart"


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
        return name.lower().translate(_NO_PUNCTUATION) or name
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
