"""What a prompt costs: its tokens before it is asked, which a limit on tokens reserves, and its price after."""

from typing import Final

from config.values import Prices
from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.usage import CHARACTERS_PER_TOKEN

#: Weight of the newest completion: the last ten or so decide.
NEWEST: Final = 0.1
#: Part of `max_tokens` that a completion is taken for until one was seen.
FIRST_GUESS: Final = 0.5


def prompt_tokens(prompt: Prompt) -> int:
    characters = len(prompt.system) + len(prompt.instructions) + len(prompt.data) + len(prompt.schema.text)
    return characters // CHARACTERS_PER_TOKEN


def cost_usd(prices: Prices, asked: str, answered: str, prompt_tokens: float, completion_tokens: float) -> float | None:
    """The price of one call; None where neither the model that answered nor the one asked has a price."""
    price = prices.get(answered) or prices.get(asked)
    if price is None:
        return None
    return (prompt_tokens * price.input_usd + completion_tokens * price.output_usd) / 1_000_000


class TokenEstimate:
    """Learns the length of each stage's completions: an exponentially weighted moving average.

    Reserving `max_tokens` would waste most of the capacity. The difference to the real count is booked with the answer.
    """

    def __init__(self) -> None:
        self._completions: dict[str, float] = {}

    def completion(self, prompt: Prompt, max_tokens: int) -> int:
        return round(min(self._completions.get(prompt.stage, max_tokens * FIRST_GUESS), max_tokens))

    def learn(self, stage: str, completion_tokens: int) -> None:
        known = self._completions.get(stage, float(completion_tokens))
        self._completions[stage] = known + NEWEST * (completion_tokens - known)
