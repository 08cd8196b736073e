"""What service tiers cost beside standard.

The price list of genai-prices has standard prices alone. Providers ask half of them for flex and for batches, and for
priority up to twice as much (OpenAI's price pages, 2026): the factors are settings.
"""

from config.endpoints import BATCH, FLEX, PRIORITY
from config.sections import LlmSettings


class TierPrices:
    def __init__(self, llm: LlmSettings) -> None:
        self._factors = {
            FLEX: llm.flex_price_factor,
            PRIORITY: llm.priority_price_factor,
            BATCH: llm.batch_price_factor,
        }
        own = [one.tier for one in llm.endpoints.values() if one.tier]
        #: Tiers that a call is bought at where its job says nothing.
        self._usual = [*own, llm.tier, str(llm.extra_body.get("service_tier", ""))]

    def __repr__(self) -> str:
        return f"<TierPrices {self._factors}>"

    def factor(self, tier: str) -> float:
        """What a tier that a server names costs, times standard; one that is not known costs as much."""
        return self._factors.get(tier, 1.0)

    def may_be_flex(self, tier: str) -> bool:
        """Whether a call of this tier, or of none, may be asked at the tier flex."""
        return tier == FLEX or (not tier and FLEX in self._usual)

    def dearest(self, tier: str) -> float:
        """The most that a call asked at this tier can cost, times standard: a server may answer at its own."""
        return max(1.0, *(self.factor(one) for one in ([tier] if tier else self._usual)))
