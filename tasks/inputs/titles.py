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
         "destino", "municipio", "orte", "stadte", "citta", "luogo", "nome", "cidade", "stad", "plaats",
         "naam", "miasto"),
        "name",
    ),
    **dict.fromkeys(
        ("country", "nation", "land", "lander", "staat", "pays", "pais", "paese", "nazione", "kraj"),
        "country",
    ),
    **dict.fromkeys(
        ("region", "state", "province", "adminname", "admin1name", "bundesland", "kanton", "canton", "departement",
         "provincia", "estado", "comunidad", "regione", "regiao", "provincie", "prefecture", "county"),
        "region",
    ),
    **dict.fromkeys(("lat", "latitude", "breite", "breitengrad", "latitud", "latitudine"), "lat"),
    **dict.fromkeys(
        ("lon", "lng", "long", "longitude", "lange", "laenge", "laengengrad", "langengrad", "longitud", "longitudine"),
        "lon",
    ),
}  # fmt: skip
#: Words that may stand beside them: `City Name`, `cityLabel`, `Name of the country`, `Destination (full)`.
_BESIDE: Final = frozenset({
    "name", "names", "label", "of", "the", "full", "display", "official", "common", "english", "en", "travel",
})  # fmt: skip
#: Words of a code, which stands for a name where there is none.
_CODES: Final = frozenset({"code", "codes", "iso", "iso2", "iso3", "alpha2", "alpha3"})
#: How little a title is our own: our word, a label, another word, some words, a code.
OURS, LABEL, WORD, WORDS, CODE = range(5)
_WORD: Final = re.compile(r"[^\W_]+")
_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
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
    if title_key(title) in OWN_ID_COLUMNS:
        return None
    folded = _folded(title)
    if role := _word_role(folded):
        return role, OURS if folded == role else WORD
    words = [_folded(word) for word in _WORD.findall(_CAMEL.sub(" ", title))]
    return _role_of_words(_split(words[0]) if len(words) == 1 else words)


def _role_of_words(words: Sequence[str]) -> tuple[Role, int] | None:
    """The role of several words: `Destination country` is a country, `destination city` a name."""
    if words == ["item", "label"]:
        return "name", LABEL
    roles = {role for role in map(_word_role, words) if role}
    others = {word for word in words if not _word_role(word) and word not in _BESIDE}
    special = roles - {"name"}
    if not roles or len(special) > 1 or special & {"lat", "lon"} or not others <= _CODES or _is_phrase(words):
        return None
    role: Role = special.pop() if special else "name"
    if others:
        # A code of a city is no name of it.
        return None if role == "name" else (role, CODE)
    return role, LABEL if words[-1] == "label" else WORDS


def _is_phrase(words: Sequence[str]) -> bool:
    """Whether these are words of a sentence rather than of a title: `the city`, not `name of the city`."""
    return "the" in words and "of" not in words


def _word_role(word: str) -> Role | None:
    for one in (word, word.removesuffix("s"), f"{word.removesuffix('ies')}y", word.removesuffix("n")):
        if one in COLUMNS:
            return COLUMNS[one]
    return None


def _split(word: str) -> list[str]:
    """`cityname` and `countrycode` as two words."""
    for end in (*sorted(_CODES), "name", "label"):
        if word.endswith(end) and len(word) > len(end):
            return [word.removesuffix(end), end]
    return [word]


def _is_item(key: str, keys: set[str]) -> bool:
    """Whether a column holds items whose labels stand in another: `city` beside `cityLabel`."""
    return f"{key}label" in keys or f"{key}_label" in keys


def _folded(title: str) -> str:
    text = unicodedata.normalize("NFKD", title.casefold())
    return _NOT_LETTERS.sub("", "".join(char for char in text if not unicodedata.combining(char)))
