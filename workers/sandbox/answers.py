"""The sandbox's answers, filled from a small hand-written knowledge base.

An answer depends on the seed, the destination, the theme and the field alone: one batch of 25 themes and four smaller
ones give the same profile. Destinations that are not in the knowledge base get themes made of their name.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from tasks.identity import normalise

KNOWLEDGE_FILE: Final = Path(__file__).with_name("knowledge.yaml")
CATEGORIES: Final = ("culture", "food", "adventure", "entertainment", "luxury")
MONTHS: Final = tuple(
    "January February March April May June July August September October November December".split()  # noqa: SIM905
)
#: Field of a prompt's schema -> the stage that asks for it: how a stage is known where it is not named.
STAGE_OF_FIELD: Final = {
    "seasonality": "analyse.seasonality",
    "traveler_types": "analyse.travellers",
    "price_point": "analyse.price",
    "confidence": "analyse.confidence",
    "sub_themes": "enhance.sub_themes",
    "nano_themes": "enhance.nano_experiences",
    "rationale": "enhance.rationale",
    "unique_selling_points": "enhance.selling_points",
    "authenticity_score": "assess.authenticity",
    "overlapping_groups": "assess.overlap",
    "overall": "assess.quality",
}
_THEME_ID: Final = re.compile(r"t[1-9]\d*")
_KIND: Final = re.compile(r"of the kind \W*(\w+)")

Schema = Mapping[str, Any]
T = TypeVar("T")


class Place(msgspec.Struct, frozen=True, eq=False, forbid_unknown_fields=True):
    """One destination. Each theme is written as "name | description". Equal and hashed by identity."""

    name: str
    peak: list[str]
    avoid: list[str]
    culture: list[str]
    food: list[str]
    adventure: list[str]
    entertainment: list[str]
    luxury: list[str]
    country: str | None = None
    #: Other spellings of the country.
    also: list[str] = []
    #: Price level of a stay: low, mid or high.
    cost: str = "mid"
    #: Generic places are made up from a name, not written by hand.
    generic: bool = False

    def themes(self, category: str) -> list[tuple[str, str]]:
        if category in CATEGORIES:
            return [_split(entry) for entry in getattr(self, category)]
        return [_split(entry) for entry in _generic_entries(self.name, category)]


class Knowledge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    places: list[Place]
    generic: dict[str, list[str]]
    nouns: list[str]
    sub_themes: dict[str, list[str]]
    nano_themes: dict[str, list[str]]
    unique_selling_points: dict[str, list[str]]
    openings: list[str]
    closings: list[str]
    recommendations: list[str]


class Theme(msgspec.Struct, frozen=True):
    id: str
    name: str
    category: str = ""
    description: str = ""


class Input(msgspec.Struct, frozen=True):
    destination: "Name"
    themes: list[Theme] = []
    evidence: list["Passage"] = []


class Passage(msgspec.Struct, frozen=True):
    source: str = ""
    text: str = ""


class Name(msgspec.Struct, frozen=True):
    name: str = "Nowhere"
    country: str | None = None


class Question(msgspec.Struct, frozen=True):
    stage: str
    category: str
    input: Input


class Dice:
    """Deterministic throws out of one hash: small choices at a tenth of a generator's cost."""

    __slots__ = ("_key", "_rest")

    def __init__(self, *key: object) -> None:
        self._key = "\x1f".join(map(str, key)).encode("utf-8", "surrogatepass")
        self._rest = 0

    def below(self, count: int) -> int:
        if self._rest < count << 32:
            digest = hashlib.blake2b(self._key)
            self._key = digest.digest()
            self._rest = int.from_bytes(self._key)
        self._rest, number = divmod(self._rest, count)
        return number

    def between(self, low: float, high: float) -> float:
        return round(low + self.below(1001) / 1000 * (high - low), 2)

    def some(self, choices: Sequence[T], count: int) -> list[T]:
        left = list(choices)
        return [left.pop(self.below(len(left))) for _ in range(min(count, len(left)))]


def understand(text: str, *, schema: Any, schema_name: str = "") -> Question:
    """Read a prompt: its stage (by the schema's name, else by its shape) and the data block at its end."""
    stage = schema_name.replace("_", ".", 1) or _stage_by_shape(text, schema)
    kind, _, category = stage.partition(".")
    return Question(stage=stage, category=category if kind == "discover" else "", input=_input_of(text))


def _stage_by_shape(text: str, schema: Any) -> str:
    members = _members(schema)
    if "themes" in members:
        match = _KIND.search(text)
        return f"discover.{match[1].casefold() if match else CATEGORIES[0]}"
    themes = [part for name, part in members.items() if _THEME_ID.fullmatch(name)]
    fields = _members(themes[0]) if themes else members
    return next((STAGE_OF_FIELD[name] for name in fields if name in STAGE_OF_FIELD), "unknown")


def _input_of(text: str) -> Input:
    _, mark, after = text.rpartition("<input>")
    try:
        return msgspec.json.decode(after.partition("\n</input>")[0].strip() if mark else "", type=Input)
    except msgspec.DecodeError:
        return Input(Name())


def fill(question: Question, schema: Any, seed: int) -> Any:
    """Answer a question within the schema's upper bounds; None for a schema that is not the pipeline's."""
    place = _place(question.input.destination)
    members = _members(schema)
    if "themes" in members:
        return {"themes": _discovered(place, question, members["themes"], seed)}
    if members and all(_THEME_ID.fullmatch(name) for name in members):
        return _each_theme(place, question, members, seed)
    if members and members.keys() <= _WHOLE.keys():
        dice = Dice(seed, place.name, "whole")
        themes = question.input.themes
        return {name: _WHOLE[name](place, themes, part, dice) for name, part in members.items()}
    return None


def _discovered(place: Place, question: Question, schema: Schema, seed: int) -> list[dict[str, Any]]:
    most = schema.get("maxItems", 7)
    members = _members(schema.get("items", {}))
    found = place.themes(question.category)[:most]
    spare = [_split(entry) for entry in _generic_entries(place.name, question.category)]
    found += [pair for pair in spare if pair not in found][: max(0, schema.get("minItems", 0) - len(found))]
    answer = []
    for name, description in found:
        dice = Dice(seed, place.name, name, "discover")
        citations = _citations(place, question.input.evidence, dice)
        facts: dict[str, Any] = {"name": name, "description": description, "citations": citations}
        answer.append({key: _clip(facts[key], part) for key, part in members.items() if key in facts})
    return answer


def _citations(place: Place, evidence: Sequence[Passage], dice: Dice) -> list[str]:
    """Words of the evidence where there is some, one time in five invented ones, as models do; else titles."""
    if evidence:
        passage = evidence[dice.below(len(evidence))]
        words = passage.text.split()
        start = dice.below(max(1, len(words) - 8))
        quoted = " ".join(words[start : start + 8])
        return [f"{passage.source}: {quoted if dice.below(5) else 'words that stand in no source at all'}"]
    if place.generic:
        return []
    return dice.some([f"Wikivoyage: {place.name}", f"Wikipedia: {place.name}"], dice.below(3))


def _each_theme(place: Place, question: Question, members: Schema, seed: int) -> dict[str, Any] | None:
    known = {theme.id: theme for theme in question.input.themes}
    answer: dict[str, Any] = {}
    for theme_id, part in members.items():
        theme = known.get(theme_id, Theme(theme_id, f"Sights of {place.name}", CATEGORIES[0]))
        made_up = theme.category, theme.description or f"{theme.name} in {place.name}."
        category, description = _index(place).get(theme.name) or made_up
        about = About(place, theme.name, theme.category or category, description)
        fields = _members(part)
        if not fields.keys() <= _FIELDS.keys():
            return None
        answer[theme_id] = {
            field: _clip(_FIELDS[field](about, Dice(seed, place.name, theme.name, field)), bounds)
            for field, bounds in fields.items()
        }
    return answer


class About(msgspec.Struct, frozen=True):
    place: Place
    name: str
    category: str
    description: str

    def say(self, sentence: str) -> str:
        return sentence.replace("{theme}", self.name).replace("{place}", self.place.name)


def _seasonality(about: About, dice: Dice) -> dict[str, list[str]]:
    peak = dice.some(about.place.peak, 2 + dice.below(3))
    avoid = dice.some(about.place.avoid, 3 if about.category == "adventure" else dice.below(3))
    return {"peak": sorted(peak, key=MONTHS.index), "avoid": sorted(avoid, key=MONTHS.index)}


def _traveler_types(about: About, dice: Dice) -> list[str]:
    first, others = _TRAVELLERS.get(about.category, ("cultural", ["solo", "couple", "family", "group"]))
    return [first, *dice.some(others, dice.below(3))]


def _price_point(about: About, dice: Dice) -> str:
    if about.category == "luxury":
        return "luxury"
    level = {"low": 0, "mid": 1, "high": 2}[about.place.cost]
    return _PRICES[level + dice.below(2) + (about.category == "adventure")]


def _rationale(about: About, dice: Dice) -> str:
    opening, closing = dice.some(knowledge().openings, 1)[0], dice.some(knowledge().closings, 1)[0]
    return " ".join(map(about.say, (opening, about.description, closing)))


def _some_of(field: str) -> Callable[[About, Dice], list[str]]:
    def some(about: About, dice: Dice) -> list[str]:
        pool: Mapping[str, Sequence[str]] = getattr(knowledge(), field)
        sentences = [*pool.get(about.category, ()), *pool["any"]]
        return [about.say(sentence) for sentence in dice.some(sentences, 3 + dice.below(2))]

    return some


def _groups(_place: Place, themes: Sequence[Theme], schema: Schema, dice: Dice) -> list[list[str]]:
    allowed = schema.get("items", {}).get("items", {}).get("enum")
    foods = [theme.id for theme in themes if theme.category == "food" and (not allowed or theme.id in allowed)]
    return [foods[:2]] if len(foods) > 1 and dice.below(4) == 0 else []


def _recommendations(place: Place, _themes: Sequence[Theme], schema: Schema, dice: Dice) -> list[str]:
    most = min(3, schema.get("maxItems", 3))
    chosen = dice.some(knowledge().recommendations, 1 + dice.below(max(1, most)))[:most]
    return [_clip(sentence.replace("{place}", place.name), schema.get("items", {})) for sentence in chosen]


def _clip(value: Any, schema: Any) -> Any:
    """Cut texts and lists to the schema's upper bounds; a cut text ends with a whole word where it can."""
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, list):
        items = schema.get("items", {})
        return [_clip(item, items) for item in value[: schema.get("maxItems")]]
    most = schema.get("maxLength")
    if isinstance(value, str) and most is not None and len(value) > most:
        cut = value[: most + 1].rpartition(" ")[0].rstrip(" ,.;")
        return cut if len(cut) >= schema.get("minLength", 0) and cut else value[:most]
    return value


def _members(schema: Any) -> dict[str, Any]:
    """The properties of an object's schema, each looked up where it refers to a definition of the same schema."""
    members = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(members, dict):
        return {}
    definitions = schema.get("$defs")
    if not isinstance(definitions, dict):
        return members
    return {name: _defined(part, definitions) for name, part in members.items()}


def _defined(part: Any, definitions: dict[str, Any]) -> Any:
    reference = part.get("$ref") if isinstance(part, Mapping) else None
    return definitions.get(reference.rpartition("/")[2], part) if isinstance(reference, str) else part


def _split(entry: str) -> tuple[str, str]:
    name, _, description = entry.partition(" | ")
    return name, description


def _place(name: Name) -> Place:
    place = _places().get(_plain(name.name))
    if place is None:
        return _generic_place(name.name)
    countries = {_plain(country) for country in [place.country or "", *place.also]}
    return place if name.country is None or _plain(name.country) in countries else _generic_place(name.name)


def _plain(text: str) -> str:
    return normalise(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


@functools.cache
def _places() -> dict[str, Place]:
    return {_plain(place.name): place for place in knowledge().places}


@functools.cache
def knowledge() -> Knowledge:
    return msgspec.yaml.decode(KNOWLEDGE_FILE.read_bytes(), type=Knowledge)


@functools.lru_cache(maxsize=256)
def _generic_place(name: str) -> Place:
    months = Dice(name, "months")
    start = months.below(12)
    entries: dict[str, Any] = {category: _generic_entries(name, category) for category in CATEGORIES}
    return Place(
        name=name,
        peak=[MONTHS[(start + step) % 12] for step in range(3)],
        avoid=[MONTHS[(start + 6) % 12]],
        generic=True,
        **entries,
    )


def _generic_entries(name: str, category: str) -> list[str]:
    things = knowledge().generic.get(category) or [
        f"{category.replace('_', ' ').capitalize()} {noun}" for noun in knowledge().nouns
    ]
    return [f"{thing} of {name} | {thing} of {name}: a general idea, not a checked fact." for thing in things]


@functools.lru_cache(maxsize=256)
def _index(place: Place) -> dict[str, tuple[str, str]]:
    return {theme: (kind, text) for kind in CATEGORIES for theme, text in place.themes(kind)}


#: From the cheapest place's cheapest day to the dearest; an adventure costs one step more.
_PRICES: Final = ("budget", "budget", "mid", "mid", "luxury")
_TRAVELLERS: Final = {
    "culture": ("cultural", ["solo", "couple", "family", "group"]),
    "food": ("couple", ["solo", "group", "family", "cultural"]),
    "adventure": ("adventure", ["solo", "group", "family", "couple"]),
    "entertainment": ("group", ["couple", "family", "solo", "budget"]),
    "luxury": ("luxury", ["couple", "relaxation", "business"]),
}

_FIELDS: Final[dict[str, Callable[[About, Dice], Any]]] = {
    "seasonality": _seasonality,
    "traveler_types": _traveler_types,
    "price_point": _price_point,
    **dict.fromkeys(("confidence", "authenticity_score"), lambda _about, dice: dice.between(0.6, 0.97)),
    **{field: _some_of(field) for field in ("sub_themes", "nano_themes", "unique_selling_points")},
    "rationale": _rationale,
}
_WHOLE: Final[dict[str, Callable[[Place, Sequence[Theme], Schema, Dice], Any]]] = {
    "overlapping_groups": _groups,
    "recommendations": _recommendations,
    **dict.fromkeys(
        ("diversity", "quality", "coverage", "completeness", "overall"),
        lambda _p, _t, _s, dice: dice.between(0.7, 0.95),
    ),
}
