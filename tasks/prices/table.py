"""The prices that hold under some settings: `llm.prices`, then `llm.prices_file`, then the package's list."""

from collections.abc import Iterable, Iterator
from typing import Final

from config.sections import LlmSettings
from config.values import Prices
from tasks.prices.catalogue import Catalogue
from tasks.prices.rates import Offer, Rates, TokenCounts
from tasks.prices.sources import packaged, read_file

#: Where a key without a base URL belongs.
OPENAI_BASE_URL: Final = "https://api.openai.com/v1"
#: Offers that are kept: servers choose the names that they answer with.
MAX_OFFERS: Final = 1_000


class PriceTable:
    """Raises ConfigError: `llm.prices_file` cannot be used. The package's list is read when it is needed first."""

    def __init__(self, llm: LlmSettings) -> None:
        self._llm = llm
        self._file = read_file(llm.prices_file) if llm.prices_file else None
        self._offers: dict[tuple[str, ...], Offer | None] = {}
        self._first: dict[tuple[str, str], Offer | None] = {}

    def __repr__(self) -> str:
        return f"<PriceTable own={len(self._llm.prices)} file={self._llm.prices_file} offers={len(self._offers)}>"

    def offer(self, base_url: str, *names: str) -> Offer | None:
        """The prices of a model at a server, by the first of its names that has any; None: they are not known."""
        key = (base_url, *names)
        if key not in self._offers:
            if len(self._offers) >= MAX_OFFERS:
                self._offers.clear()
            self._offers[key] = self._found(base_url, names)
        return self._offers[key]

    def offers(self, model: str, answered: str = "") -> Iterator[tuple[str, str, Offer | None]]:
        """The prices of a model at each endpoint that serves it, behind the endpoint's name and address."""
        for name, base_url, there in self._servers(model):
            yield name, base_url, self.offer(base_url, *filter(None, (answered, model, there)))

    def usd(self, model: str, counts: TokenCounts, answered: str = "") -> float | None:
        """What a call costs at the first endpoint whose price of it is known; None where none is."""
        key = model, answered
        if key not in self._first:
            if len(self._first) >= MAX_OFFERS:
                self._first.clear()
            self._first[key] = next((offer for *_, offer in self.offers(model, answered) if offer), None)
        found = self._first[key]
        return found.at().usd(counts) if found else None

    def most_nano(self, model: str, prompt: int, completion: int) -> int | None:
        """The most that a call can cost, wherever it is made; None where one of its prices is not known."""
        found = [offer for *_, offer in self.offers(model)]
        known = [offer.most_nano(prompt, completion) for offer in found if offer]
        return max(known) if known and len(known) == len(found) else None

    def unpriced(self, models: Iterable[str]) -> list[str]:
        """Those of some models whose price is not known at every endpoint that serves them."""
        return sorted({model for model in models if any(offer is None for *_, offer in self.offers(model))})

    def _found(self, base_url: str, names: tuple[str, ...]) -> Offer | None:
        source = f"llm.prices_file {self._llm.prices_file}"
        return (
            _named(self._llm.prices, "llm.prices", names)
            or _in(self._file, source, base_url, names)
            or _in(packaged(), "", base_url, names)
        )

    def _servers(self, model: str) -> Iterator[tuple[str, str, str]]:
        """Each endpoint that serves a model: its name, its address, and the model's name there."""
        llm = self._llm
        if not llm.endpoints:
            yield "llm", str.__str__(llm.base_url or OPENAI_BASE_URL), model
        for name, one in llm.endpoints.items():
            if not one.models or model in one.models:
                yield name, str.__str__(one.base_url or ""), one.models.get(model, model)


def _named(prices: Prices, source: str, names: Iterable[str]) -> Offer | None:
    for name in names:
        if name in prices:
            return Offer(name, source, ((None, Rates.of_price(prices[name])),))
    return None


def _in(prices: Catalogue | Prices | None, source: str, base_url: str, names: Iterable[str]) -> Offer | None:
    if prices is None:
        return None
    if not isinstance(prices, Catalogue):
        return _named(prices, source, names)
    for name in names:
        if found := prices.find(base_url, name):
            provider, model = found
            return Offer.of_model(model, provider.id, prices.source)
    return None
