"""One focused prompt: what is asked, in which shape the answer comes, and what identifies it in the cache."""

import hashlib
from dataclasses import dataclass
from typing import Final

import msgspec

from workers.llm.answers import AnswerSchema

#: Counts up when the meaning of a cached value changes.
KEY_VERSION: Final = "2"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request to the LLM, independent of model and endpoint.

    The fixed parts come first and the data last, so that providers' prefix caches work. `version` is a digest of the
    fixed parts and of what the schema is made from; `identity` is the data with the destination normalised: two
    spellings of one destination share a completion.
    """

    stage: str
    version: str
    system: str
    instructions: str
    data: str
    identity: str
    schema: AnswerSchema
    max_tokens: int

    def key(self, *, model: str, temperature: float | None) -> str:
        """The cache key: a digest of all that changes the answer, and of nothing that does not.

        `max_tokens` is left out on purpose: it decides only where an answer is cut, and cut answers are not stored.
        """
        heat = None if temperature is None else float(temperature)
        parts = [KEY_VERSION, model, heat, self.version, self.identity]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
