"""Answers to the product's sixteen prompts in real size: 25 themes, which make a profile of about 30 KB of JSON.

The words come from a vocabulary of 4,000, seeded and drawn as words are drawn in prose (Zipf 1935), so that answers
compress as prose does. Every name has room for `MARK`, which the server replaces by a word of the destination's own, as
long as the mark: no two destinations have a theme's name in common.
"""

import itertools
import json
import random
import zlib
from collections.abc import Callable
from typing import Any, Final

#: Themes that each stage finds: 25 together.
FOUND: Final = {"adventure": 5, "culture": 6, "entertainment": 5, "food": 5, "luxury": 4}
THEMES: Final = sum(FOUND.values())
#: Different answers of each stage.
VARIANTS: Final = 64
#: Stands where the destination's own word comes.
MARK: Final = b"Qqqqqq"
_MONTHS: Final = "January February March April May June July August September October November December"
_TRAVELLERS: Final = "solo couple family group business luxury budget adventure cultural relaxation"
_SMALL: Final = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were all her she there would their we him been has when who will no more if out so up said what "
    "its about than into them can only other time new some could these two may first then do any like my now over "
    "such our man me even most made after also did many off before must well back through years much where your way "
    "down should because long each just those people"
)
_SYLLABLES: Final = (
    "ba be bo ca ce co da de di do fa fe fi ga go ha he ho in ka ke ki la le li lo ma me mi mo na ne ni no on or pa "
    "pe pi po ra re ri ro sa se si so ta te ti to tra ur va ve vi vo sho bri can der est fen gar hol ist jun kes "
    "lan mer nor ost per que ros sten tur und ver wol yar zen"
)
#: Of the vocabulary, the words that are in no name.
COMMON: Final = len(_SMALL.split())
_VOWELS, _CONSONANTS = "aeiou", "bdfgklmnprstvz"


def _vocabulary() -> tuple[list[str], list[float]]:
    """The words, the commonest first, and their cumulative weights."""
    chance = random.Random(0)
    made = sorted({"".join(chance.choices(_SYLLABLES.split(), k=chance.choice((2, 2, 3, 3, 4)))) for _ in range(6_000)})
    small = _SMALL.split()
    words = [*small, *chance.sample(made, k=4_000 - len(small))]
    return words, list(itertools.accumulate(1 / (rank + 2.7) for rank in range(len(words))))


class Prose:
    """Draws names and sentences."""

    _words, _weights = _vocabulary()

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def words(self, count: int) -> list[str]:
        return self.chance.choices(self._words, cum_weights=self._weights, k=count)

    def sentence(self, low: int, high: int) -> str:
        return " ".join(self.words(self.chance.randint(low, high))).capitalize() + "."

    def name(self, low: int = 1, high: int = 2) -> str:
        """A destination's own word, and some others."""
        others = self.chance.choices(self._words[COMMON:], k=self.chance.randint(low, high))
        return " ".join([MARK.decode(), *(word.capitalize() for word in others)])

    def texts(self, count: tuple[int, int], words: tuple[int, int]) -> list[str]:
        return [f"{self.name(0, 1)}: {self.sentence(*words)}" for _ in range(self.chance.randint(*count))]


def _new_theme(prose: Prose) -> dict[str, Any]:
    return {
        "name": prose.name(1, 2),
        "description": f"{prose.sentence(8, 14)} {prose.sentence(6, 12)}",
        "citations": [prose.name(2, 4) for _ in range(prose.chance.randint(1, 2))],
    }


def _score(prose: Prose) -> float:
    return round(prose.chance.uniform(0.5, 1), 2)


def _seasonality(prose: Prose) -> dict[str, list[str]]:
    start, long = prose.chance.randrange(12), prose.chance.randint(2, 5)
    months = _MONTHS.split()
    peak = [months[(start + month) % 12] for month in range(long)]
    return {"peak": peak, "avoid": [months[(start + 6 + month) % 12] for month in range(prose.chance.randint(0, 3))]}


#: Schema name -> the fields of each theme.
_EACH: Final[dict[str, Callable[[Prose], dict[str, Any]]]] = {
    "analyse_confidence": lambda prose: {"confidence": _score(prose)},
    "analyse_price": lambda prose: {"price_point": prose.chance.choice(["budget", "mid", "luxury"])},
    "analyse_seasonality": lambda prose: {"seasonality": _seasonality(prose)},
    "analyse_travellers": lambda prose: {
        "traveler_types": prose.chance.sample(_TRAVELLERS.split(), k=prose.chance.randint(1, 3))
    },
    "assess_authenticity": lambda prose: {"authenticity_score": _score(prose)},
    "enhance_nano_experiences": lambda prose: {"nano_themes": prose.texts((3, 4), (3, 6))},
    "enhance_rationale": lambda prose: {"rationale": f"{prose.sentence(8, 15)} {prose.sentence(8, 14)}"},
    "enhance_selling_points": lambda prose: {"unique_selling_points": prose.texts((3, 4), (3, 6))},
    "enhance_sub_themes": lambda prose: {"sub_themes": [prose.name(1, 2) for _ in range(prose.chance.randint(3, 4))]},
}


def value(name: str, prose: Prose) -> Any:
    """An answer under the schema of this name, about 25 themes where it is about themes."""
    if name == "assess_overlap":
        ids = prose.chance.sample(range(1, THEMES + 1), k=5)
        return {"overlapping_groups": [[f"t{one}" for one in ids[:2]], [f"t{one}" for one in ids[2:]]]}
    if name == "assess_quality":
        texts = [prose.sentence(10, 18) for _ in range(4)]
        return {"quality": _score(prose), "overall": _score(prose), "recommendations": texts}
    if name in _EACH:
        return {f"t{number}": _EACH[name](prose) for number in range(1, THEMES + 1)}
    return {"themes": [_new_theme(prose) for _ in range(FOUND[name.removeprefix("discover_")])]}


def names() -> list[str]:
    """The names of all schemas."""
    return [*(f"discover_{one}" for one in FOUND), *_EACH, "assess_overlap", "assess_quality"]


def completion(content: str) -> bytes:
    """A server's whole answer around the model's text."""
    tokens = {"prompt_tokens": 900, "completion_tokens": max(1, len(content) // 4)}
    message = {"role": "assistant", "content": content}
    return json.dumps(
        {
            "id": "chatcmpl-0123456789",
            "object": "chat.completion",
            "created": 1_790_000_000,
            "model": "sandbox",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": tokens | {"total_tokens": sum(tokens.values())},
        }
    ).encode()


def bodies(variants: int = VARIANTS) -> dict[bytes, list[bytes]]:
    """Schema name -> so many completions, seeded."""
    return {
        name.encode(): [
            completion(json.dumps(value(name, Prose(zlib.crc32(name.encode()) + variant))))
            for variant in range(variants)
        ]
        for name in names()
    }


def own_word(number: int) -> bytes:
    """The word of a destination, as long as the mark."""
    letters = ""
    for _ in range(3):
        number, consonant = divmod(number, len(_CONSONANTS))
        number, vowel = divmod(number, len(_VOWELS))
        letters += _CONSONANTS[consonant] + _VOWELS[vowel]
    return letters.capitalize().encode()
