"""What a call costs in US dollars, by the prices of the settings."""

from config.values import Prices


def cost_usd(prices: Prices, asked: str, answered: str, prompt_tokens: float, completion_tokens: float) -> float | None:
    """The price of one call; None where neither the model that answered nor the one asked has a price."""
    price = prices.get(answered) or prices.get(asked)
    if price is None:
        return None
    return (prompt_tokens * price.input_usd + completion_tokens * price.output_usd) / 1_000_000
