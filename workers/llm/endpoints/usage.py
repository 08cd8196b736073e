"""The `usage` of a server's answer, checked: the one place where a server's counts of tokens are believed.

A count outside its range is unknown. What is unknown is estimated by length, and marked as an estimate.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

#: Characters that a token has in the mean (English prose: about 4).
CHARACTERS_PER_TOKEN: Final = 4
#: Tokens of one prompt or one completion beyond which a count is an error: what the largest contexts hold.
MAX_TOKENS: Final = 2_000_000
#: Characters that no token has in the mean: fewer tokens than that for a text are an error too.
MAX_CHARACTERS_PER_TOKEN: Final = 100

#: An integer as some servers write it: a string of few digits, or a float without a fraction.
_WHOLE: Final = re.compile(r"[0-9]{1,9}(?:\.0{1,9})?", re.ASCII)


class Tokens(msgspec.Struct, frozen=True):
    """What one answer has used. `problem` says which count of the server was replaced by an estimate, and why."""

    prompt: int
    completion: int
    problem: str | None = None

    @property
    def is_estimated(self) -> bool:
        return self.problem is not None


_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class _Details(msgspec.Struct):
    reasoning_tokens: _Count = 0


class PlainUsage(msgspec.Struct):
    """A `usage` as most servers write it; what else one may hold is read by `tokens_of`."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count | None = None
    completion_tokens_details: _Details | None = None
    output_tokens_details: None = None

    def tokens(self, *, prompt_characters: int, completion_characters: int) -> Tokens | None:
        """As `tokens_of`, where all counts can be true and agree; else None."""
        prompt, completion, details = self.prompt_tokens, self.completion_tokens, self.completion_tokens_details
        agree = self.total_tokens is None or self.total_tokens == prompt + completion
        if not agree or (details is not None and details.reasoning_tokens > completion):
            return None
        if prompt < max(1, _least(prompt_characters)) or completion < _least(completion_characters):
            return None
        return Tokens(prompt, completion)


def estimated_tokens(characters: int) -> int:
    return max(characters // CHARACTERS_PER_TOKEN, min(characters, 1))


def tokens_of(usage: Any, *, prompt_characters: int, completion_characters: int) -> Tokens:
    """The tokens that a server counted, and estimates by length for what it did not count or cannot be true.

    Hidden reasoning is paid for: where only the total or the details have it, it is added to the completion.

    Args:
        usage: the answer's `usage`, of any shape.
        prompt_characters: length of the request.
        completion_characters: length of all text of the answer, reasoning included.
    """
    counts: Mapping[Any, Any] = usage if isinstance(usage, Mapping) else {}
    prompt = _count(_first(counts, "prompt_tokens", "input_tokens"))
    completion = _count(_first(counts, "completion_tokens", "output_tokens"))
    total = _count(counts.get("total_tokens"))
    details = counts.get("completion_tokens_details") or counts.get("output_tokens_details")
    reasoning = _count(details.get("reasoning_tokens")) if isinstance(details, Mapping) else None
    if completion is not None and reasoning is not None and reasoning > completion:
        completion += reasoning
    if total is not None and total > 0:
        if prompt is None and completion:
            prompt = max(0, total - completion)
        elif prompt:
            completion = max(completion or 0, total - prompt)
    wrong = []
    # A request always has tokens, and so has every text.
    if not prompt or prompt < _least(prompt_characters):
        wrong.append("prompt_tokens")
        prompt = estimated_tokens(prompt_characters)
    if completion is None or completion > MAX_TOKENS or completion < _least(completion_characters):
        wrong.append("completion_tokens")
        completion = estimated_tokens(completion_characters)
    return Tokens(prompt, completion, _problem(usage, wrong) if wrong else None)


def _least(characters: int) -> int:
    return max(characters // MAX_CHARACTERS_PER_TOKEN, min(characters, 1))


def _problem(usage: Any, wrong: list[str]) -> str:
    if not isinstance(usage, Mapping) or not usage:
        return "no usage"
    return ", ".join(f"{name}={str(usage.get(name))[:40]!r}" for name in wrong)


def _first(counts: Mapping[Any, Any], *names: str) -> Any:
    for name in names:
        if (value := counts.get(name)) is not None:
            return value
    return None


def _count(value: Any) -> int | None:
    """A count of tokens, 0 to `MAX_TOKENS`; None where the value is none."""
    if type(value) is int:
        return value if 0 <= value <= MAX_TOKENS else None
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
        return value if 0 <= value <= MAX_TOKENS else None
    return None
