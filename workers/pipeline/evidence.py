"""Evidence: what the web says of a destination, read before themes are asked for; citations are checked against it.

Wikivoyage and Wikipedia need no key; with one, the Brave Search API names more pages. The former's interfaces under
/w/ and /api/ are closed to robots, so pages are read by their titles. What was read goes into prompts as quoted data. A
destination without evidence goes on without.
"""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec
from redis import RedisError
from redis.asyncio import Redis

from config.settings import Settings
from tasks import keys
from tasks.errors import RetryableError, ThemesError
from tasks.frames import WireError
from tasks.identity import normalise
from tasks.messages import Destination, pack, unpack
from tasks.messages import Evidence as EvidenceRecord
from workers.llm.flights.local import SingleFlight
from workers.pipeline.web.fetcher import Fetched, GuardedFetcher, PageError, SiteAwayError
from workers.pipeline.web.page import text_of

log = logging.getLogger("themes.evidence")

#: Characters that a quotation has at least: fewer words stand in any text.
SHORTEST_QUOTE: Final = 12
#: Pages of a search that are read.
SEARCHED_PAGES: Final = 3
#: Seconds for which it is remembered that nothing was found.
NOTHING_SECONDS: Final = 3_600
#: Tries of a page whose site does not answer, and seconds between them.
TRIES: Final = 2
PAUSE_SECONDS: Final = 1.0
#: Destinations whose evidence a process remembers without Redis.
REMEMBERED: Final = 1_000

#: Quotation marks and what else may stand around words.
_MARKS: Final = " \"'.\u2018\u2019\u201c\u201d\u00ab\u00bb\u2026"
_CITED: Final = re.compile(r"\s*(E\d{1,3})\s*:\s*(.+)", re.DOTALL)
#: Marks of a page that only tells meanings of a name apart.
_AMBIGUOUS: Final = re.compile(r"\bmay refer to\b|\bdisambiguation page\b", re.IGNORECASE)


class Passage(msgspec.Struct, frozen=True):
    """So much of one page as goes into prompts."""

    source: str
    url: str
    title: str
    text: str
    fetched_at: float


@dataclass(slots=True)
class FoundEvidence:
    """What was read about a destination, and what could not be."""

    passages: list[Passage] = field(default_factory=list)
    failures: list[EvidenceRecord] = field(default_factory=list)
    _texts: dict[str, str] = field(default_factory=dict)

    def quoted(self) -> list[dict[str, str]]:
        return [{"source": one.source, "title": one.title, "text": one.text} for one in self.passages]

    def supports(self, citations: Sequence[str]) -> list[bool]:
        """Whether each citation quotes a passage word for word, spelling of letters and blanks aside."""
        return [self._supports(citation) for citation in citations]

    def _supports(self, citation: str) -> bool:
        cited = _CITED.fullmatch(citation)
        if cited is None:
            return False
        words = normalise(cited.group(2)).strip(_MARKS)
        if not self._texts:
            self._texts = {one.source: normalise(one.text) for one in self.passages}
        return len(words) >= SHORTEST_QUOTE and words in self._texts.get(cited.group(1), "")

    def records(self) -> list[EvidenceRecord]:
        read = [
            EvidenceRecord(one.source, one.url, one.title, len(one.text), fetched_at=one.fetched_at)
            for one in self.passages
        ]
        return [*read, *self.failures]


class EvidenceReader:
    """Reads evidence once a destination, for all workers while it is cached. Open and close its fetcher yourself."""

    def __init__(self, fetcher: GuardedFetcher, settings: Settings, redis: Redis | None) -> None:
        self._fetcher = fetcher
        self._web = settings.web_discovery
        self._redis = redis
        self._ttl_seconds = int(settings.performance_optimization.cache_ttl_days * 86_400)
        self._flights: SingleFlight[FoundEvidence] = SingleFlight()
        self._known: dict[str, FoundEvidence] = {}

    @classmethod
    @asynccontextmanager
    async def of(cls, settings: Settings, redis: Redis | None) -> AsyncIterator["EvidenceReader | None"]:
        """The reader that the settings ask for, with a fetcher of its own; None where the web is not to be read."""
        if not settings.web_discovery.enabled:
            yield None
            return
        async with GuardedFetcher(settings) as fetcher:
            yield cls(fetcher, settings, redis)

    def __repr__(self) -> str:
        return f"<EvidenceReader {self._fetcher!r}>"

    async def read(self, destination: Destination) -> FoundEvidence:
        """What the web says of a destination; never raises for what the web does."""
        digest = self._digest(destination)
        found, _ = await self._flights.run(digest, lambda: self._find(destination, digest))
        return found

    def _digest(self, destination: Destination) -> str:
        web = self._web
        places = [web.wikivoyage_url, web.wikipedia_url, web.brave_api_key is not None, web.max_evidence_characters]
        about = [destination.id, destination.region and normalise(destination.region), *places]
        return hashlib.sha256(msgspec.json.encode(about)).hexdigest()

    async def _find(self, destination: Destination, digest: str) -> FoundEvidence:
        known = self._known.get(digest) or await self._cached(digest)
        if known is None:
            known = await self._read(destination)
            await self._keep(digest, known)
        if len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[digest] = known
        return known

    async def _cached(self, digest: str) -> FoundEvidence | None:
        if self._redis is None:
            return None
        try:
            raw: Any = await self._redis.get(keys.evidence(digest))
            if raw is None:
                return None
            passages, failures = unpack(raw, tuple[list[Passage], list[EvidenceRecord]])
        except (RedisError, OSError, WireError) as exc:
            log.debug("action=evidence_uncached %s", exc)
            return None
        return FoundEvidence(passages, failures)

    async def _keep(self, digest: str, evidence: FoundEvidence) -> None:
        if self._redis is None:
            return
        seconds = self._ttl_seconds if evidence.passages else min(NOTHING_SECONDS, self._ttl_seconds)
        try:
            await self._redis.set(
                keys.evidence(digest), pack((evidence.passages, evidence.failures)), ex=max(1, seconds)
            )
        except (RedisError, OSError) as exc:
            log.debug("action=evidence_uncached %s", exc)

    async def _read(self, destination: Destination) -> FoundEvidence:
        sources = [
            self._titled(name, base, destination)
            for name, base in (("wikivoyage", self._web.wikivoyage_url), ("wikipedia", self._web.wikipedia_url))
            if base
        ]
        if self._web.brave_api_key:
            sources.append(self._searched(destination))
        sources = [_harmless(source) for source in sources]
        pages: list[tuple[Fetched, str, str]] = []
        evidence = FoundEvidence()
        for outcome in await asyncio.gather(*sources):
            if isinstance(outcome, EvidenceRecord):
                evidence.failures.append(outcome)
                log.info("action=evidence_missing source=%s %s", outcome.source, outcome.reason)
            else:
                pages += [page for page in outcome if page[0].url not in {one[0].url for one in pages}]
        share = self._web.max_evidence_characters // max(1, len(pages))
        for number, (page, title, text) in enumerate(pages, start=1):
            evidence.passages.append(Passage(f"E{number}", page.url, title, _cut(text, share), time.time()))
        return evidence

    async def _titled(
        self, source: str, base: str, destination: Destination
    ) -> list[tuple[Fetched, str, str]] | EvidenceRecord:
        """The page about a destination, under the first of its possible titles that speaks of its country."""
        reason, url = "no page", base
        for title in titles(destination):
            url = base + quote(title.replace(" ", "_"), safe="(),'")
            try:
                page = await self._page(url)
            except SiteAwayError as exc:
                return EvidenceRecord(source, url, reason=str(exc))
            except PageError as exc:
                reason = str(exc)
                continue
            name, text = text_of(page.text)
            if speaks_of(destination, text):
                return [(page, name, text)]
            reason = "no page that speaks of it"
        return EvidenceRecord(source, url, reason=reason)

    async def _searched(self, destination: Destination) -> list[tuple[Fetched, str, str]] | EvidenceRecord:
        place = f"{self._web.brave_url}?{urlencode({'q': f'{destination.label} travel', 'count': SEARCHED_PAGES})}"
        headers = {"X-Subscription-Token": str.__str__(self._web.brave_api_key or ""), "Accept": "application/json"}
        try:
            answer = await self._fetcher.fetch(place, headers=headers, is_api=True)
            links = _links(answer.text)
        except (ThemesError, ValueError) as exc:
            return EvidenceRecord("brave", self._web.brave_url, reason=str(exc))
        found = await asyncio.gather(*(self._page(url) for url in links), return_exceptions=True)
        pages = []
        for page in found:
            if isinstance(page, Fetched):
                name, text = text_of(page.text)
                if speaks_of(destination, text):
                    pages.append((page, name, text))
            else:
                log.info("action=evidence_missing source=brave %s", page)
        return pages or EvidenceRecord("brave", self._web.brave_url, reason="no page that speaks of it")

    async def _page(self, url: str) -> Fetched:
        for number in range(1, TRIES + 1):
            try:
                return await self._fetcher.fetch(url)
            except RetryableError:
                if number == TRIES:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)
        raise AssertionError


async def _harmless(
    source: Awaitable[list[tuple[Fetched, str, str]] | EvidenceRecord],
) -> list[tuple[Fetched, str, str]] | EvidenceRecord:
    """What a source gives. A fault of ours with a page of others costs that source, and never the destination."""
    try:
        return await source
    except Exception as exc:
        log.exception("action=evidence_crashed")
        return EvidenceRecord("web", "", reason=f"{type(exc).__name__}: {exc}"[:200])


def titles(destination: Destination) -> list[str]:
    """Under which titles an encyclopedia may have a destination, the likeliest first."""
    name, country, region = destination.name.strip(), destination.country, destination.region
    likely = [name, f"{name} ({country})", f"{name}, {country}", f"{name} ({region})", f"{name}, {region}"]
    if "," in name:
        likely.append(name.partition(",")[0].strip())
    return list(dict.fromkeys(title for title in likely if "None" not in title or "None" in name))


def speaks_of(destination: Destination, text: str) -> bool:
    """Whether a page is about a destination: it names it and its country, and is no list of meanings."""
    if _AMBIGUOUS.search(text[:1_000]) or len(text) < SHORTEST_QUOTE:
        return False
    whole = normalise(text)
    name = normalise(destination.name.partition(",")[0])
    return name in whole and (not destination.country or normalise(destination.country) in whole)


def _cut(text: str, most: int) -> str:
    """The beginning of a text, to the end of a line where one is near."""
    if len(text) <= most:
        return text
    cut = text[:most]
    at = cut.rfind("\n")
    return cut[:at] if at > most // 2 else cut


def _links(text: str) -> list[str]:
    answer: Any = msgspec.json.decode(text)
    found = answer.get("web", {}).get("results", []) if isinstance(answer, dict) else []
    links = [str(one.get("url", "")) for one in found if isinstance(one, dict)]
    return [link for link in links if link.startswith(("http://", "https://"))][:SEARCHED_PAGES]
