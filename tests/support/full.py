"""Results as a job with good answers has them: 25 themes, prose of a real language, profiles of about 30 KB as JSON."""

import functools
import random
import re
from collections.abc import Sequence
from pydoc_data.topics import topics
from typing import Final

from msgspec.structs import replace

from tasks.messages import (
    Destination,
    Missing,
    OverlapAnalysis,
    Profile,
    QualityAssessment,
    Result,
    Seasonality,
    StageRecord,
    Theme,
    Usage,
)
from tasks.packed import pack_profile
from workers.results.database.values import MONTHS

CATEGORIES: Final = ("culture", "food", "adventure", "entertainment", "luxury")
TRAVELLERS: Final = (
    "solo", "couple", "family", "group", "business", "luxury", "budget", "adventure", "cultural", "relaxation",
)  # fmt: skip
STAGES: Final = (
    *(f"discover.{category}" for category in CATEGORIES), "enhance.nano_experiences", "enhance.rationale",
    "enhance.selling_points", "enhance.sub_themes", "analyse.confidence", "analyse.price", "analyse.seasonality",
    "analyse.travellers", "assess.authenticity", "assess.overlap", "assess.quality",
)  # fmt: skip


@functools.cache
def english() -> tuple[str, ...]:
    """Words of English prose in their order: those of Python's own manual, 40,000 of them."""
    return tuple(re.findall(r"(?<=\s)[A-Za-z][a-z,'-]*[.]?(?=\s)", " ".join(topics.values())))


class Prose:
    """Draws all that a profile holds; equal seeds draw the same of equal words."""

    def __init__(self, seed: int, words: Sequence[str]) -> None:
        self._rng = random.Random(seed)
        self._words = words

    def text(self, characters: int) -> str:
        """A run of words, so that one is as likely after the other as in the language."""
        at, found = int(self._rng.random() * (len(self._words) - characters)), ""
        while len(found) < characters:
            found += f" {self._words[at]}" if found else self._words[at].capitalize()
            at += 1
        return found

    def some(self, of: Sequence[str], low: int, high: int) -> list[str]:
        order = sorted((self._rng.random(), each) for each in of)
        return [each for _, each in order[: self.whole(low, high)]]

    def texts(self, characters: int, low: int, high: int) -> list[str]:
        return [self.text(characters) for _ in range(self.whole(low, high))]

    def whole(self, low: int, high: int) -> int:
        return low + int(self._rng.random() * (high + 1 - low))

    def share(self) -> float:
        return round(0.5 + self._rng.random() / 2, 4)

    def theme(self, number: int, count: int) -> Theme:
        return Theme(
            id=f"t{number + 1}",
            category=CATEGORIES[number * len(CATEGORIES) // count],
            name=self.text(15),
            description=self.text(105),
            citations=self.texts(22, 0, 2),
            seasonality=Seasonality(self.some(list(MONTHS), 2, 6), self.some(list(MONTHS), 0, 2)),
            traveler_types=self.some(TRAVELLERS, 1, 3),
            price_point=self.some(("budget", "mid", "luxury"), 1, 1)[0],
            confidence=self.share(),
            sub_themes=self.texts(13, 3, 4),
            nano_themes=self.texts(34, 3, 4),
            rationale=self.text(140),
            unique_selling_points=self.texts(38, 3, 4),
            authenticity_score=self.share(),
        )

    def stage(self, name: str) -> StageRecord:
        usage = Usage(
            1, prompt_tokens=self.whole(500, 900), completion_tokens=self.whole(100, 1500), cache_misses=1,
            cache_stores=1, bytes_raw=self.whole(400, 4000), bytes_stored=self.whole(200, 1500),
            cost_usd=round(self.share() / 100, 6),
        )  # fmt: skip
        usage = replace(usage, listed_usd=usage.cost_usd, tier_saved_usd=0.25)
        source = self.some(("called", "cached"), 1, 1)[0]
        version = f"{STAGES.index(name) * 7919:012x}"
        return StageRecord(name, "ok", version, "sandbox", source, usage, self.share() * 1000)  # type: ignore[arg-type]

    def result(
        self, destination: Destination, *, job_id: str, at: float, themes: int = 25, missing: Sequence[Missing] = ()
    ) -> Result:
        stages = [self.stage(name) for name in STAGES]
        usage = sum((stage.usage for stage in stages), Usage())
        profile = Profile(
            destination_id=destination.id, name=destination.name, country=destination.country,
            status="partial" if missing else "ok", model="sandbox", pipeline_version="8f3c2a91d0e4",
            themes=[self.theme(number, themes) for number in range(themes)],
            overlap_analysis=OverlapAnalysis([["t1", "t3"]], [f"t{number}" for number in range(4, themes + 1)], []),
            quality_assessment=QualityAssessment(0.9, 1.0, 1.0, 0.8, self.share(), self.texts(80, 3, 3)),
            missing=list(missing), stages=stages, usage=usage, elapsed_ms=812.5, created_at=at,
            extra=destination.extra,
        )  # fmt: skip
        packed = pack_profile(profile)
        return Result(job_id, destination.id, 1, usage, "worker-1@host", at, 812.5, profile=packed)


def full_results(count: int, *, job_id: str = "cities-20261129-101112-ab12") -> tuple[list[Destination], list[Result]]:
    """Destinations and their results, of full size."""
    prose = Prose(5, english())
    towns = [Destination.of(f"{prose.text(9)} {number}", f"Country {number % 60}") for number in range(count)]
    return towns, [prose.result(town, job_id=job_id, at=1000.0 + number) for number, town in enumerate(towns)]
