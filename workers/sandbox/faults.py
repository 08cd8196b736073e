"""What the sandbox LLM does wrong on demand, and how long it takes, drawn by hash so that a run can be repeated."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

from config.errors import ConfigError

#: Kind -> what the caller sees.
KINDS: Final = {
    "429": "too many requests, with or without Retry-After",
    "no_capacity": "status 429 to requests of the tier flex: no capacity now",
    "500": "an internal error",
    "503": "an overloaded server",
    "401": "a refused key",
    "400": "a refused request",
    "404": "an unknown model",
    "hang": "no answer, ever",
    "reset": "the connection is cut in the middle of the body",
    "drip": "the body comes byte by byte",
    "truncated": "cut in the middle, finish_reason length",
    "invalid": "the content is not JSON",
    "wrong": "valid JSON of another shape",
    "html": "status 502 with an HTML page",
    "error200": "status 200 with an error body",
    "empty": "no choices",
    "refusal": "message.refusal instead of content",
    "content_filter": "finish_reason content_filter",
    "fenced": "a fence in capitals, with sentences around it",
    "trailing_comma": "a comma before the last bracket",
    "upper_keys": "every key in capitals",
    "wrapped": "a wrapper too many, or one missing",
    "endless": "a body without an end",
}
GRAMMAR: Final = "KIND=RATE[,retry_after=SECONDS|date][,interval=SECONDS][,match=TEXT][,times=N]"
#: Latency without `--latency`: a median of 250 ms with a long tail, as hosted models have.
DEFAULT_LATENCY: Final = "lognormal:250ms:0.4"
DRIP_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One rule. `rate` is 0-1; the prompt contains `match`; only its first `times` occurrences count."""

    kind: str
    rate: float
    retry_after: float | str | None = None
    interval_seconds: float = DRIP_SECONDS
    match: str = ""
    times: int | None = None

    def __str__(self) -> str:
        options = (
            ("retry_after", self.retry_after, None), ("interval", self.interval_seconds, DRIP_SECONDS),
            ("match", self.match, ""), ("times", self.times, None),
        )  # fmt: skip
        given = [(name, value) for name, value, default in options if value != default]
        shown = (f",{name}={value if isinstance(value, str | int) else f'{value:g}'}" for name, value in given)
        return f"{self.kind}={self.rate:g}{''.join(shown)}"


def parse_fault(text: str) -> Fault:
    """Read `429=0.2,retry_after=1,match=Paris,times=1`; MATCH ends at the next comma. Raises ConfigError."""
    head, *options = text.split(",")
    kind, _, rate = head.partition("=")
    if kind not in KINDS:
        raise ConfigError(f"--fault {text}: unknown kind {kind!r}; one of {', '.join(KINDS)}")
    given = dict(option.partition("=")[::2] for option in options)
    if unknown := given.keys() - {"retry_after", "interval", "match", "times"}:
        raise ConfigError(f"--fault {text}: unknown option {min(unknown)!r}; write {GRAMMAR}")
    try:
        retry_after = given.get("retry_after")
        fault = Fault(
            kind=kind,
            rate=float(rate),
            retry_after=retry_after if retry_after in (None, "date") else _at_least_zero(retry_after or ""),
            interval_seconds=_at_least_zero(given.get("interval", str(DRIP_SECONDS))),
            match=given.get("match", ""),
            times=int(_at_least_zero(given["times"])) if "times" in given else None,
        )
    except ValueError as exc:
        raise ConfigError(f"--fault {text}: {exc}; write {GRAMMAR}") from exc
    if not 0 <= fault.rate <= 1:
        raise ConfigError(f"--fault {text}: the rate lies between 0 and 1")
    return fault


def choose_fault(faults: Sequence[Fault], *, text: str, digest: str, seed: int, occurrence: int) -> Fault | None:
    for place, fault in enumerate(faults):
        if fault.times is not None and occurrence >= fault.times:
            continue
        if fault.match and fault.match not in text:
            continue
        if fault.rate >= 1 or draw(f"{seed}/{digest}/{occurrence}/{place}/{fault.kind}") < fault.rate:
            return fault
    return None


def draw(key: str) -> float:
    bits = int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 11
    return bits / 2.0**53


@dataclass(frozen=True, slots=True)
class Latency:
    """A distribution of latencies: lognormal around its median; with sigma 0 always the median."""

    median_seconds: float
    sigma: float = 0.0

    def seconds(self, key: str) -> float:
        if not self.sigma or not self.median_seconds:
            return self.median_seconds
        # A draw of exactly 0 has no finite place on the bell curve.
        return self.median_seconds * math.exp(self.sigma * NormalDist().inv_cdf(max(draw(key), 2.0**-53)))


def parse_latency(text: str) -> Latency:
    """Read `0`, `50ms`, `0.2` or `0.2s` (seconds), or `lognormal:MEDIAN:SIGMA`. Raises ConfigError."""
    try:
        if text.startswith("lognormal:"):
            _, median, sigma = text.split(":")
            return Latency(_duration(median), _at_least_zero(sigma))
        return Latency(_duration(text))
    except ValueError as exc:
        raise ConfigError(f"--latency {text}: write 0, 50ms, 0.2 (seconds) or lognormal:250ms:0.4") from exc


def _duration(text: str) -> float:
    match = re.fullmatch(r"([0-9.]+)(ms|s)?", text)
    if match is None:
        raise ValueError(f"{text!r} is no duration")
    return _at_least_zero(match[1]) / (1000 if match[2] == "ms" else 1)


def _at_least_zero(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{text!r} is not a number of at least 0")
    return number


def spoil(kind: str, content: str, *, is_valid: Callable[[Any], bool]) -> str:
    """Turn a good answer into the bad one of this kind; other kinds of fault leave it alone."""
    if kind in ("invalid", "wrong"):
        return "Here are a few ideas: {themes: [sunset" if kind == "invalid" else _wrong(is_valid)
    if kind == "truncated":
        return content[: len(content) // 2]
    if kind == "fenced":
        return f"Here is the JSON you asked for:\n```JSON\n{content}\n```\nI hope that this helps."
    if kind == "trailing_comma":
        return f"{content[:-1]},{content[-1]}" if content[-1:] in ("}", "]") else content
    if kind == "upper_keys":
        return json.dumps(_upper(json.loads(content)), ensure_ascii=False)
    return _rewrapped(content) if kind == "wrapped" else content


def _wrong(is_valid: Callable[[Any], bool]) -> str:
    candidates: tuple[Any, ...] = ({"answer": 42}, ["wrong"], "wrong", None, -1.5)
    return json.dumps(next((wrong for wrong in candidates if not is_valid(wrong)), None))


def _upper(value: Any) -> Any:
    if isinstance(value, dict):
        return {key.upper(): _upper(part) for key, part in value.items()}
    return [_upper(part) for part in value] if isinstance(value, list) else value


def _rewrapped(content: str) -> str:
    """Take the only wrapper off (`{"themes": […]}` becomes the list), or put one around."""
    value = json.loads(content)
    inner = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else None
    return json.dumps(inner if isinstance(inner, list) else {"result": value}, ensure_ascii=False)
