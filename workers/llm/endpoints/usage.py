"""The `usage` of a server's answer, checked: the one place where a server's counts of tokens are believed.

A count outside its range is unknown. What is unknown is estimated by length, and marked as an estimate.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec

from tasks.prices.rates import TokenCounts

#: Characters that a token has in the mean (English prose: about 4).
CHARACTERS_PER_TOKEN: Final = 4
#: Tokens of one prompt or one completion beyond which a count is an error: what the largest contexts hold.
MAX_TOKENS: Final = 2_000_000
#: Characters that no token has in the mean: fewer tokens than that for a text are an error too.
MAX_CHARACTERS_PER_TOKEN: Final = 100

#: US dollars that one call may be said to have cost: two million tokens at the dearest price that there is.
MAX_USD: Final = 2_000.0

#: An integer as some servers write it: a string of few digits, or a float without a fraction.
_WHOLE: Final = re.compile(r"[0-9]{1,9}(?:\.0{1,9})?", re.ASCII)


class Tokens(msgspec.Struct, frozen=True):
    """What one answer has used. `problem` says which count of the server was replaced by an estimate, and why."""

    prompt: int
    completion: int
    problem: str | None = None
    #: Of the prompt: taken from the provider's cache, written into it, and of these for an hour.
    cached: int = 0
    written: int = 0
    written_1h: int = 0
    #: Of the completion.
    reasoning: int = 0
    #: What the server says that the call has cost; None where it says nothing.
    told_usd: float | None = None

    @property
    def is_estimated(self) -> bool:
        return self.problem is not None

    @property
    def counts(self) -> TokenCounts:
        return TokenCounts(self.prompt, self.completion, self.cached, self.written, self.written_1h, self.reasoning)


_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None
    cache_creation_tokens: None = None


class _Details(msgspec.Struct):
    reasoning_tokens: _Count | None = None


class PlainUsage(msgspec.Struct):
    """A `usage` as most servers write it; what else one may hold is read by `tokens_of`."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: None = None
    output_tokens_details: None = None
    cost: None = None
    cached_tokens: None = None
    reasoning_tokens: None = None
    prompt_cache_hit_tokens: None = None
    cache_read_input_tokens: None = None
    cache_creation_input_tokens: None = None

    def tokens(self, *, prompt_characters: int, completion_characters: int) -> Tokens | None:
        """As `tokens_of`, where all counts can be true and agree; else None."""
        prompt, completion = self.prompt_tokens, self.completion_tokens
        asked, told = self.prompt_tokens_details, self.completion_tokens_details
        cached, written = (asked.cached_tokens or 0, asked.cache_write_tokens or 0) if asked else (0, 0)
        reasoning = (told.reasoning_tokens or 0) if told else 0
        agree = self.total_tokens is None or self.total_tokens == prompt + completion
        if not agree or reasoning > completion or cached + written > prompt:
            return None
        if prompt < max(1, _least(prompt_characters)) or completion < _least(completion_characters):
            return None
        return Tokens(prompt, completion, None, cached, written, 0, reasoning)


def usage_in(body: Mapping[Any, Any]) -> Any:
    """Where a body has its counts: in `usage`, Groq's `x_groq`, or llama.cpp's `timings`."""
    usage, groq, timings = body.get("usage"), body.get("x_groq"), body.get("timings")
    if not usage and isinstance(groq, Mapping):
        usage = groq.get("usage")
    if not isinstance(timings, Mapping):
        return usage
    cached, evaluated = _count(timings.get("cache_n")), _count(timings.get("prompt_n"))
    if isinstance(usage, Mapping) and usage:
        return usage if usage.get("prompt_tokens_details") or not cached else {**usage, "cached_tokens": cached}
    if evaluated is None:
        return usage
    prompt = evaluated + (cached or 0)
    return {"prompt_tokens": prompt, "completion_tokens": timings.get("predicted_n"), "cached_tokens": cached}


def estimated_tokens(characters: int) -> int:
    return max(characters // CHARACTERS_PER_TOKEN, min(characters, 1))


def tokens_of(usage: Any, *, prompt_characters: int, completion_characters: int) -> Tokens:
    """The tokens that a server counted, and estimates by length for what it did not count or cannot be true.

    Hidden reasoning is paid for: where only the total or the details have it, it is added to the completion. Tokens of
    a provider's cache are part of the prompt: where a server counts them beside it, they are added. A part that is
    larger than its whole is not believed.

    Args:
        usage: the answer's `usage`, of any shape.
        prompt_characters: length of the request.
        completion_characters: length of all text of the answer, reasoning included.
    """
    counts: Mapping[Any, Any] = usage if isinstance(usage, Mapping) else {}
    completion = _count(_first(counts, "completion_tokens", "output_tokens"))
    total = _count(counts.get("total_tokens"))
    prompt, cached, written = _prompt(counts, completion, total)
    details = counts.get("completion_tokens_details") or counts.get("output_tokens_details")
    reasoning = _count(_first(_mapping(details), "reasoning_tokens", "thinking_tokens"))
    reasoning = _count(counts.get("reasoning_tokens")) if reasoning is None else reasoning
    if completion is not None and reasoning is not None and reasoning > completion:
        completion += reasoning
    if total is not None and total > 0:
        if prompt is None and completion:
            prompt = max(0, total - completion)
        elif prompt:
            hidden = total - prompt - (completion or 0)
            completion = max(completion or 0, total - prompt)
            reasoning = hidden if reasoning is None and hidden > 0 else reasoning
    wrong = []
    # A request always has tokens, and so has every text.
    if not prompt or prompt > MAX_TOKENS or prompt < _least(prompt_characters):
        wrong.append("prompt_tokens")
        prompt = estimated_tokens(prompt_characters)
    if completion is None or completion > MAX_TOKENS or completion < _least(completion_characters):
        wrong.append("completion_tokens")
        completion = estimated_tokens(completion_characters)
    if cached + written > prompt:
        cached = written = 0
    if reasoning is None or reasoning > completion:
        reasoning = 0
    an_hour = _count(_mapping(counts.get("cache_creation")).get("ephemeral_1h_input_tokens")) or 0
    problem = _problem(usage, wrong) if wrong else None
    return Tokens(prompt, completion, problem, cached, written, min(an_hour, written), reasoning, _told_usd(counts))


def _prompt(counts: Mapping[Any, Any], completion: int | None, total: int | None) -> tuple[int | None, int, int]:
    """The tokens of the prompt, and of these those that were taken from a cache and written into it."""
    details = _mapping(counts.get("prompt_tokens_details") or counts.get("input_tokens_details"))
    prompt = _count(_first(counts, "prompt_tokens", "input_tokens"))
    hit, missed = (_count(counts.get(f"prompt_cache_{end}_tokens")) for end in ("hit", "miss"))
    read, made = (_count(counts.get(f"cache_{end}_input_tokens")) for end in ("read", "creation"))
    if prompt is None and hit is not None and missed is not None:
        prompt = hit + missed
    aside = (read or 0) + (made or 0)
    if prompt is not None and aside:
        # Anthropic counts both beside the prompt, gateways within it.
        is_beside = counts.get("prompt_tokens") is None or aside > prompt
        prompt += aside if is_beside or total == prompt + (completion or 0) + aside else 0
    listed = _count(details.get("cached_tokens")), hit, read, _count(counts.get("cached_tokens"))
    creating = _count(_first(details, "cache_write_tokens", "cache_creation_tokens")), made
    cached, written = (next((each for each in known if each), 0) for known in (listed, creating))
    return prompt, cached, written


def _told_usd(counts: Mapping[Any, Any]) -> float | None:
    """What the server says that the call has cost: OpenRouter's `cost`, with what was paid to a provider directly."""
    cost = counts.get("cost")
    usd = _usd(cost.get("total_cost") if isinstance(cost, Mapping) else cost)
    if usd is not None and counts.get("is_byok") is True:
        usd += _usd(_mapping(counts.get("cost_details")).get("upstream_inference_cost")) or 0.0
    return usd


def _usd(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and 0 <= value <= MAX_USD else None


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


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
