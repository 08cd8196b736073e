"""What a prompt and its completion will take: their tokens before it is asked, which a limit on tokens reserves."""

from typing import Final

from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.usage import CHARACTERS_PER_TOKEN

#: Weight of the newest completion: the last ten or so decide.
NEWEST: Final = 0.1
#: Part of `max_tokens` that a completion is taken for until one was seen.
FIRST_GUESS: Final = 0.5


def prompt_tokens(prompt: Prompt) -> int:
    characters = len(prompt.system) + len(prompt.instructions) + len(prompt.data) + len(prompt.schema.text)
    return characters // CHARACTERS_PER_TOKEN


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
