"""What answers have cost."""

from config.settings import Settings
from tasks.prices.table import PriceTable
from tasks.prices.tiers import TierPrices
from workers.llm.endpoints.client import ChatClient
from workers.llm.endpoints.reply import RawAnswer
from workers.observe.call_journal import Bill


class Billing:
    """Prices of models and service tiers, as the settings have them. Raises ConfigError as `PriceTable`."""

    def __init__(self, settings: Settings) -> None:
        self.prices = PriceTable(settings.llm)
        self.tiers = TierPrices(settings.llm)

    def __repr__(self) -> str:
        return f"<Billing {self.prices!r} {self.tiers!r}>"

    def bill(self, raw: RawAnswer, model: str, client: ChatClient, *, tier: str | None = None) -> Bill:
        """What an answer has cost: what the server says of it, else what the prices come to.

        `model` is the one that was asked, by our name. Without a `tier` it is the one that the answer names.
        """
        tokens = raw.tokens
        offer = self.prices.offer(client.base_url, raw.model, model, client.model)
        standard = offer.at().usd(tokens.counts) if offer else None
        listed = None if standard is None else standard * self.tiers.factor(raw.tier if tier is None else tier)
        saved = None if standard is None or listed is None else standard - listed
        return Bill(
            tokens.prompt, tokens.completion, listed if tokens.told_usd is None else tokens.told_usd, listed,
            int(tokens.is_estimated), tokens.cached, tokens.written, tokens.reasoning, saved,
        )  # fmt: skip
