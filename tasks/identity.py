"""Which rows are one destination, and the id that it has in every job: the one rule.

1. A row with an id of its user's own (`OWN_ID_COLUMNS`, `--id-column`) is the destination of that id. Two rows of one
   input with the same id are one destination, whatever else they say.
2. Any other row is the destination of its name, country and region, as `normalise` writes them.
3. Where such rows have coordinates, they are one destination up to `SAME_PLACE_KM` apart, and two beyond that.

What only one of two rows says (a country, a region, coordinates) makes them two: two places are never taken for one.

A `destination_id` is made of its own row alone, so the same row has the same id in every file and job. Coordinates
enter it as a cell of a grid. Two places of one name never share a cell, because cells are smaller than
`SAME_PLACE_KM`; one place at the border of two cells may have either id, so a search asks `nearby_ids` too.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

#: The rule in one sentence.
RULE: Final = (
    "rows are one destination by their id (--id-column, destination_id, id, a Wikidata or GeoNames id), else by name, "
    "country and region where their coordinates, if they have any, are within 25 km"
)
#: Kilometres up to which rows of one name, country and region are one place.
SAME_PLACE_KM: Final = 25.0
EARTH_RADIUS_KM: Final = 6371.0
#: Cells of the grid around the Earth: 7.8 km, so that two neighbours lie within 22.1 km, less than `SAME_PLACE_KM`.
GRID_CELLS: Final = 5120

#: Characters of a text that may be a column's title.
MAX_TITLE: Final = 200
#: Titles (as `title_key` writes them) of columns that hold a row's id, and the catalogue that gave it.
OWN_ID_COLUMNS: Final = {
    "destination_id": "destination_id", "id": "id",
    "wikidata": "wikidata", "wikidata_id": "wikidata", "wikidataid": "wikidata", "wikidata_qid": "wikidata",
    "qid": "wikidata",
    "geonameid": "geonames", "geoname_id": "geonames", "geonames": "geonames", "geonames_id": "geonames",
    "geonamesid": "geonames",
}  # fmt: skip
#: Where a row has several ids: its user's own, then these.
_PRECEDENCE: Final = {key: place for place, key in enumerate(OWN_ID_COLUMNS)}
#: How an id of a public catalogue is written, alone or at the end of an address.
_PUBLIC_ID: Final = {
    "wikidata": re.compile(r"(?:^|/)(Q[1-9]\d*)/?$", re.IGNORECASE),
    "geonames": re.compile(r"(?:^|/)([1-9]\d*)(?:\.0|/.*)?$"),
}
#: What stands in a column of ids where a row has none: words for nothing, numbers whose digits a spreadsheet has cut.
_NO_ID: Final = re.compile(
    r"#?n/?a|#?n/a n/a|nan|null|<null>|none|nil|<na>|undefined|unknown|tbd|\\n|[-\u2013\u2014?.0]+|"
    r"#(ref|value|name)[!?]|[0-9](\.[0-9]+)?e\+[0-9]{2,3}",
    re.IGNORECASE,
)


class OwnId(NamedTuple):
    """An id that a row brings with it. `catalogue`: wikidata, geonames, or the title of its user's own column."""

    column: str
    catalogue: str
    value: str

    @property
    def is_public(self) -> bool:
        """Whether every file means the same place by it."""
        return self.catalogue in _PUBLIC_ID


def normalise(text: str) -> str:
    """Text for comparison: NFKC, casefolded, invisible characters dropped, blanks collapsed.

    What comes out does not change when it is normalised again. Folding can undo NFKC and the other way round, hence
    both twice (Unicode 3.13, definition D146: toNFKC_Casefold).
    """
    if not text.isascii():
        text = "".join(char for char in text if unicodedata.category(char) != "Cf")
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", text).casefold())
        text = unicodedata.normalize("NFKC", text.casefold())
    return " ".join(text.lower().split() if text.isascii() else text.split())


def destination_id(*row: Any, own: OwnId | None = None) -> str:
    """The id of a row's destination: 20 hex digits (80 bits). The rest of what `identify` takes stands in `row`."""
    return identify(*row, own=own)[0]


def identify(
    name: str,
    country: str | None = None,
    region: str | None = None,
    lat: float | None = None,
    lon: float | None = None,
    *,
    own: OwnId | None = None,
) -> tuple[str, str]:
    """The id of a row's destination, and the key that rows of one input share that are one destination.

    Rows of one key that have coordinates and no id of their own are one only up to `SAME_PLACE_KM` apart. An id of a
    public catalogue stands alone. A user's own id may be a number that another file gives to another place, so name,
    country and region belong to the destination's id.
    """
    if own is not None:
        key = _digest(f"\x1e{own.catalogue}\x1f{own.value}")
        if own.is_public:
            return key, key
        return _digest(f"\x1e{own.catalogue}\x1f{own.value}\x1e{_text(name, country, region)}"), key
    text = _text(name, country, region)
    if lat is None or lon is None:
        id_ = _digest(text)
        return id_, id_
    digest = hashlib.sha256(f"{text}\x1e".encode("utf-8", "surrogatepass"))
    key = digest.hexdigest()[:20]
    # As `_placed` makes it.
    digest.update("{},{}".format(*_cell(lat, lon)).encode())
    return digest.hexdigest()[:20], key


def nearby_ids(name: str, country: str | None, region: str | None, lat: float, lon: float) -> list[str]:
    """The ids that this place would have with coordinates in the cells around its own."""
    text = _text(name, country, region)
    x, y = _cell(lat, lon)
    around = ((x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if dx or dy)
    return [_placed(text, (x % GRID_CELLS, y)) for x, y in around]


def own_id(values: Mapping[str, str], *, id_column: str | None = None, item: str | None = None) -> OwnId | None:
    found = own_ids(values, id_column=id_column, item=item)
    return found[0] if found else None


def own_ids(values: Mapping[str, str], *, id_column: str | None = None, item: str | None = None) -> list[OwnId]:
    """The ids that a row brings with it, among its further columns, the best first; a word for none is none.

    `id_column` goes before the columns that are known to hold ids; `item` is a column of Wikidata items.
    """
    found: list[tuple[int, OwnId]] = []
    wanted = title_key(id_column) if id_column else None
    for title, text in values.items():
        key = title_key(title)
        catalogue = OWN_ID_COLUMNS.get(key) or (key if key == wanted else "wikidata" if title == item else None)
        if catalogue is None:
            continue
        value = text.strip()
        if _NO_ID.fullmatch(value):
            continue
        if catalogue in _PUBLIC_ID:
            match = _PUBLIC_ID[catalogue].search(value)
            value = match.group(1).upper() if match else ""
        if value:
            place = -1 if key == wanted else _PRECEDENCE.get(key, len(_PRECEDENCE))
            found.append((place, OwnId(title, catalogue, value)))
    return [own for _, own in sorted(found)]


def title_key(title: str) -> str:
    """A column's title for comparison: `Wikidata ID` is `wikidata_id`."""
    return _title_key(title) if len(title) <= MAX_TITLE else title


@lru_cache(maxsize=4096)
def _title_key(title: str) -> str:
    return title.strip().strip('"').casefold().replace(" ", "_").replace("-", "_")


def distance_km(here: tuple[float, float], there: tuple[float, float]) -> float:
    """Kilometres between two pairs of latitude and longitude in degrees (haversine formula)."""
    lat1, lon1, lat2, lon2 = map(math.radians, (*here, *there))
    half = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, half)))


def point_km(lat: float, lon: float) -> tuple[float, float, float]:
    """A place in space, in kilometres from the Earth's centre: near places are near, also at 180° and the poles."""
    up, around = math.radians(lat), math.radians(lon)
    level = EARTH_RADIUS_KM * math.cos(up)
    return level * math.cos(around), level * math.sin(around), EARTH_RADIUS_KM * math.sin(up)


def _cell(lat: float, lon: float) -> tuple[int, int]:
    return int((lon + 180) / 360 * GRID_CELLS) % GRID_CELLS, int((lat + 90) / 360 * GRID_CELLS)


def _text(name: str, country: str | None, region: str | None) -> str:
    """Names without ambiguity: normalised text has no control characters."""
    text = f"{normalise(name)}\x1f{_repeated(country) if country else ''}"
    return f"{text}\x1f{folded}" if region and (folded := _repeated(region)) else text


def _placed(text: str, cell: tuple[int, int]) -> str:
    return _digest(f"{text}\x1e{cell[0]},{cell[1]}")


@lru_cache(maxsize=1024)
def _repeated(text: str) -> str:
    """A country or region, normalised: many rows have the same."""
    return normalise(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]
