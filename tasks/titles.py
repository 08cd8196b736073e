"""What the columns of an input are by their titles."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from tasks.errors import InputError
from tasks.identity import MAX_TITLE, OWN_ID_COLUMNS, title_key

Role = Literal["name", "country", "region", "lat", "lon"]

#: What a column may be called, folded, -> what it is.
COLUMNS: Final[Mapping[str, Role]] = {
    **dict.fromkeys(
        ("name", "destination", "city", "cityascii", "place", "title", "location", "town", "village", "municipality",
         "stadt", "ort", "gemeinde", "reiseziel", "ville", "commune", "lieu", "nom", "ciudad", "lugar", "nombre",
         "destino", "municipio", "citta", "luogo", "nome", "cidade", "stad", "plaats", "naam", "miasto"),
        "name",
    ),
    **dict.fromkeys(
        ("country", "nation", "land", "staat", "pays", "pais", "paese", "nazione", "kraj"),
        "country",
    ),
    **dict.fromkeys(
        ("region", "state", "province", "adminname", "admin1name", "bundesland", "kanton", "canton", "departement",
         "provincia", "estado", "comunidad", "regione", "regiao", "provincie", "prefecture", "county"),
        "region",
    ),
    **dict.fromkeys(("lat", "latitude", "breitengrad", "latitud", "latitudine"), "lat"),
    **dict.fromkeys(("lon", "lng", "long", "longitude", "laengengrad", "langengrad", "longitud", "longitudine"), "lon"),
}  # fmt: skip
#: What else may stand around such a word: `City Name`, `cityLabel`, `Country Code`; the higher, the worse it is.
_AROUND: Final = (
    (re.compile(r"(.+)label"), 1), (re.compile(r"(.+)name"), 2), (re.compile(r"(?:nameof|thenameof)(.+)"), 2),
    (re.compile(r"(name)(?:en|english|ascii)"), 3), (re.compile(r"(.+?)(?:code|iso|iso2|iso3)"), 4),
)  # fmt: skip
_NOT_LETTERS: Final = re.compile(r"[\W_]+")
#: Columns that two kinds of files have without a header; an empty title is left out.
GEONAMES: Final = (
    "geonameid", "name", "ascii_name", "", "lat", "lon", "feature_class", "feature_code", "country", "cc2",
    "admin1_code", "admin2_code", "admin3_code", "admin4_code", "population", "elevation", "dem", "timezone",
    "modification_date",
)  # fmt: skip
#: Inputs whose sets of titles are remembered.
_REMEMBERED: Final = 1_000


class Plan(NamedTuple):
    """Columns with a role, the best of each role first, and the column of a Wikidata item whose label is the name."""

    roles: tuple[tuple[str, Role], ...]
    item: str | None


@dataclass(slots=True)
class Columns:
    """What the columns of one input are. `mapped` says it for some, by role, before their titles do."""

    mapped: Mapping[Role, str] = field(default_factory=dict)
    id_column: str | None = None
    _plans: dict[tuple[str, ...], Plan] = field(default_factory=dict)

    def plan(self, titles: tuple[str, ...]) -> Plan:
        """The plan for rows with these titles."""
        found = self._plans.get(titles)
        if found is None:
            if len(self._plans) >= _REMEMBERED:
                self._plans.clear()
            found = self._plans[titles] = self._made(titles)
        return found

    def is_header(self, cells: Sequence[str]) -> bool:
        """Whether these cells are titles, and one of them that of the column of names.

        Where the column was named by its number, its title takes the number's place.
        """
        known = [role for role, _ in filter(None, map(role_of, cells))]
        if "name" not in self.mapped:
            return "name" in known
        if title_key(self.mapped["name"]) in map(title_key, cells):
            return True
        numbers = {str(number): cell.strip() for number, cell in enumerate(cells, start=1)}
        if not known or self.mapped["name"] not in numbers:
            return False
        self.mapped = {role: numbers.get(title, title) for role, title in self.mapped.items()}
        return True

    def _made(self, titles: tuple[str, ...]) -> Plan:
        keys = {title_key(title) for title in titles}
        mapped = {title_key(title): role for role, title in self.mapped.items()}
        found: list[tuple[int, int, str, Role]] = []
        for place, title in enumerate(titles):
            key = title_key(title)
            if key in mapped:
                found.append((-1, place, title, mapped[key]))
            elif (known := role_of(title)) and known[0] not in self.mapped and not _is_item(key, keys):
                found.append((known[1], place, title, known[0]))
        found.sort()
        names = [title for _, _, title, role in found if role == "name"]
        item = title_key(names[0])[: -len("label")].rstrip("_") if names else ""
        items = [title for title in titles if title_key(title) == item and title_key(names[0]).endswith("label")]
        return Plan(tuple((title, role) for *_, title, role in found), items[0] if items else None)


def mapping(pairs: Sequence[str]) -> tuple[dict[Role, str], str | None]:
    """`ROLE=COLUMN` pairs as the columns of the roles, and the column of ids.

    Raises:
        InputError: no `=`, or a role that does not exist.
    """
    roles: dict[str, str] = {}
    for pair in pairs:
        role, sign, column = pair.partition("=")
        if not sign or not column.strip() or role not in {"name", "country", "region", "lat", "lon", "id"}:
            raise InputError(
                f"--map {pair}: expected name, country, region, lat, lon or id, and a column: --map name=COLUMN"
            )
        roles[role] = column.strip()
    id_column = roles.pop("id", None)
    return roles, id_column  # type: ignore[return-value]  # checked above


def role_of(title: str) -> tuple[Role, int] | None:
    """What a column is by its title, and how little that title is our own; None for any other."""
    return _role_of(title) if len(title) <= MAX_TITLE else None


@lru_cache(maxsize=4096)
def _role_of(title: str) -> tuple[Role, int] | None:
    key = _folded(title)
    if title_key(title) in OWN_ID_COLUMNS:
        return None
    if key in COLUMNS:
        return COLUMNS[key], 0 if key == COLUMNS[key] else 2
    if key == "itemlabel":
        return "name", 1
    for pattern, rank in _AROUND:
        if (match := pattern.fullmatch(key)) and match[1] in COLUMNS and COLUMNS[match[1]] not in {"lat", "lon"}:
            role = COLUMNS[match[1]]
            # A code of a city is no name of it.
            return None if rank == 4 and role == "name" else (role, rank)  # noqa: PLR2004  # that of codes
    return None


def _is_item(key: str, keys: set[str]) -> bool:
    """Whether a column holds items whose labels stand in another: `city` beside `cityLabel`."""
    return f"{key}label" in keys or f"{key}_label" in keys


def _folded(title: str) -> str:
    text = unicodedata.normalize("NFKD", title.casefold())
    return _NOT_LETTERS.sub("", "".join(char for char in text if not unicodedata.combining(char)))
