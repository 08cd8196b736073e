"""One focused prompt: what is asked, in which shape the answer comes, and what identifies it in the cache."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from config.sections import LlmSettings
from workers.llm.endpoints.answers import AnswerSchema

#: Counts up when the meaning of a cached value changes.
KEY_VERSION: Final = "4"


class Prompt(msgspec.Struct, frozen=True):
    """A request to the LLM, independent of model and endpoint.

    A request is system, data, instructions, in this order: prompts of one round about one destination begin alike, for
    providers' prefix caches. `version` is a digest of the fixed parts and of what the schema is made from; `identity`
    is the data with the destination normalised: two spellings of one destination share a completion.
    """

    stage: str
    version: str
    system: str
    instructions: str
    data: str
    identity: str
    schema: AnswerSchema
    max_tokens: int
    #: A role or model that the prompt's file asks for.
    model: str | None = None

    def key(self, *, model: str, sampling: str) -> str:
        """The cache key: a digest of all that changes the answer, and of nothing that does not.

        `model` is the name that prompts and settings use, so equivalent endpoints share completions; `sampling` comes
        from `sampling_of`. `max_tokens` is left out: it decides where an answer is cut, and cut answers are not stored.
        """
        parts = [KEY_VERSION, model, sampling, self.version, self.identity]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def sampling_of(settings: LlmSettings) -> str:
    """Temperature, effort and extra fields of the body in one canonical text: keys sorted, 0 and 0.0 the same.

    The service tier is none of it.
    """
    # What an answer costs does not change it.
    body = {name: value for name, value in settings.extra_body.items() if name != "service_tier"}
    if settings.reasoning_effort is not None:
        body["reasoning_effort"] = settings.reasoning_effort
    return msgspec.json.encode(_canonical([settings.temperature, body])).decode()


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _canonical(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_canonical(one) for one in value]
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 2**53 else value
