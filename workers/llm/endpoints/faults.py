"""Whose fault a server's error is, and so what follows: one table, read from the top, the first rule that fits wins.

| fault | what follows |
|---|---|
| account | another endpoint is asked; where there is none, the job pauses after a few refusals in a row |
| prompt | this stage fails; all other prompts go on |
| answer | the model's slip: asked again once, as an invalid answer is |
| parameter | the parameter is renamed, lowered or dropped for this endpoint, and the prompt is asked again |
| format | the next weaker response format is used, unless this one has worked: then it is the answer's fault |
| capacity | none is left for the tier flex: asked again after a pause, later at the standard tier |
| rate | the endpoint is left alone for as long as it says; fewer requests at once |
| away | the endpoint cannot answer anything now: everything waits for it |
| endpoint | the endpoint failed on this call: asked again, here or elsewhere |

A rule looks at the status, the codes (`code`, `type` and the like), and the words of all messages, inner ones included.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from workers.llm.endpoints.error_body import ErrorBody


class Fault(StrEnum):
    ACCOUNT = "account"
    PROMPT = "prompt"
    ANSWER = "answer"
    PARAMETER = "parameter"
    FORMAT = "format"
    CAPACITY = "capacity"
    RATE = "rate"
    AWAY = "away"
    ENDPOINT = "endpoint"


KEY: Final = "the key is refused: check OPENAI_API_KEY"
QUOTA: Final = "the account's quota or credit is used up"
PLACE: Final = "check OPENAI_BASE_URL, which mostly ends in /v1, and THEMES_MODEL"
REGION: Final = "the provider does not serve this account here"
BLOCKED: Final = "the provider has closed or restricted this account"


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rule:
    """Fits an error whose status is in `statuses` (any where empty) and that has one of `codes` or the `words`.

    Where a rule names neither codes nor words the status decides. `unless` are words with which it does not fit;
    `page` says that the body must be, or must not be, a page.
    """

    fault: Fault
    statuses: frozenset[int] = frozenset()
    codes: frozenset[str] = frozenset()
    words: re.Pattern[str] | None = None
    unless: re.Pattern[str] | None = None
    page: bool | None = None
    hint: str = ""

    @property
    def has_words(self) -> bool:
        return bool(self.codes or self.words)

    def fits(self, status: int, error: ErrorBody) -> bool:
        if (self.statuses and status not in self.statuses) or self.page not in {None, error.is_page}:
            return False
        if self.unless and self.unless.search(error.words):
            return False
        if not self.has_words:
            return True
        return bool(self.codes & error.codes or (self.words and self.words.search(error.words)))


def _rule(
    fault: Fault,
    statuses: str = "",
    *,
    codes: str = "",
    words: str = "",
    unless: str = "",
    page: bool | None = None,
    hint: str = "",
) -> Rule:
    return Rule(
        fault,
        frozenset(_statuses(statuses)),
        frozenset(codes.split()),
        _words(words) if words else None,
        _words(unless) if unless else None,
        page,
        hint,
    )


def _statuses(text: str) -> list[int]:
    """`400 422 500-599` as numbers."""
    found: list[int] = []
    for part in text.split():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


#: Words of a limit that passes by itself: then "quota" is a rate.
_PASSES: Final = r"(re)?try (again )?(in|after)|retrydelay|per[ _-]?(second|minute|hour)|rate[ _-]limit"
_FORMAT: Final = (
    r"response[ _]?(format|mime)|json[ _]?(schema|object|mode)|structured[ _]output|guided|\bschema\b|grammar"
)
_UNKNOWN: Final = (
    r"unsupported|not support|does ?n[o']t support|unknown|unrecogni[sz]ed|unexpected|invalid|deprecated|not allowed|"
    r"not permitted|forbidden|only the default|no longer|extra (inputs|fields)|use '?max_completion_tokens|"
    r"(must|should) (only )?be\b|out of range"
)
#: One request is larger than all that a minute allows, which no wait makes right.
_TOO_LARGE: Final = (
    r"request (body )?(is )?too large|tokens must be reduced|reduce your message size|tokens_limit_reached"
)
_TOO_LONG: Final = (
    r"context[ _](length|window|size)|maximum context|max_model_len|prompt is too long|too many (input )?tokens|"
    r"(input|prompt)[^.]{0,40} (too long|exceeds)|reduce the length|exceed[s_]?[ _]context|token limit"
)
#: The completion's limit itself is too high.
TOO_MANY: Final = _words(
    r"max(imum)?[ _](completion[ _]|output[ _]|new[ _])?tokens?\b[^.]{0,80}"
    r"(too (large|high|big)|exceed|at most|must be (less|smaller|<)|less than or equal|greater than|cannot be|maximum)|"
    r"range of max_\w*tokens|max_\w*tokens(?![a-z_])[^.]{0,40}(range|between|must be in|非法)|"
    rf"(supports|allows) at most \d+ (completion|output) tokens|{_TOO_LARGE}|{_TOO_LONG}"
)

RULES: Final = (
    # What the codes or words name for certain, whatever the status.
    _rule(
        Fault.ACCOUNT,
        "400-599",
        codes="insufficient_quota billing_hard_limit_reached billing_not_active insufficient_balance arrearage "
        "insufficient_credits exceeded_current_quota_error insufficient_user_quota budget_exceeded 1113",
        hint=QUOTA,
    ),
    _rule(
        Fault.ACCOUNT,
        "400-500",
        codes="quota_exceeded blocked_api_access",
        words=r"credit balance|insufficient (credit|balance|fund|quota)|exceeded your current quota|out of credits?|"
        r"not enough (credit|balance)|no (remaining )?credits?|used all (available |your )?credits|"
        r"(any|more) credits\b|spend(ing)? limit|usage limits?\b|(billing|account)[^.]{0,40}(limit|overdue)|"
        r"payment required|over budget|budget (has been|was|is) exceeded|used up your|calls ?/ ?month|"
        r"monthly (limit|quota)|"
        r"free (tier|quota|trial)[^.]{0,40}(exhausted|used up|expired)|欠费|余额不足|额度不足|额度已用",
        unless=_PASSES,
        hint=QUOTA,
    ),
    _rule(
        Fault.ACCOUNT,
        "400-499",
        codes="account_deactivated organization_restricted access_terminated",
        words=r"\b(account|organi[sz]ation|billing)\b[^.]{0,60}(inactive|not active|suspended|disabled|flagged|"
        r"restricted|terminated|deactivated|banned)|access (was|has been) terminated|verified to use the model",
        unless=_PASSES,
        hint=BLOCKED,
    ),
    _rule(
        Fault.PROMPT,
        "400-499",
        codes="content_filter content_policy_violation responsibleaipolicyviolation data_inspection_failed "
        "moderation_error prohibited_content",
        words=r"content (management )?policy|flagged|moderation|content[ _]filter|inappropriate content|safety system",
    ),
    _rule(Fault.ACCOUNT, "402", hint=QUOTA),
    _rule(Fault.ACCOUNT, "401", hint=KEY),
    _rule(Fault.ACCOUNT, "407", hint="the proxy wants a log-in: check HTTPS_PROXY"),
    _rule(
        Fault.ACCOUNT,
        "400-503",
        codes="invalid_api_key api_key_invalid authentication_error invalid_authentication_error permission_denied "
        "unauthenticated invalid_token access_denied",
        words=r"api[ _-]?key[^.]{0,40}(not valid|invalid|expired|not found|incorrect|missing|required|disabled|revoked)"
        r"|(invalid|incorrect|expired|missing|no|wrong|bad) (api[ _-]?key|credential|(access )?token\b)"
        r"|unauthori[sz]ed",
        unless=r"\bmodel\b[^.]{0,60}(access|not found|exist)",
        hint=KEY,
    ),
    _rule(
        Fault.ACCOUNT,
        "400-499",
        codes="unsupported_country_region_territory",
        words=r"country, region, or territory|location is not supported|not available in your (country|region)",
        hint=REGION,
    ),
    _rule(
        Fault.ACCOUNT,
        "400-499",
        codes="model_not_found deploymentnotfound model_decommissioned model_not_available model_not_supported "
        "unknown_model unavailable_model invalid_model 1211",
        words=r"\bmodel\b[^.]{0,80}(does not exist|not exist|not found|not available|no access|decommissioned|"
        r"is not supported)|(no such|unknown|invalid|not a valid|unavailable) model\b|no access to (the )?model|"
        r"model identifier|no models? (is |are )?loaded|does not work with the specified model|on-demand throughput|"
        r"unexpected endpoint|plain http request was sent to https",
        unless=r"response[ _]?format|json[ _]?schema|temperature|max_(completion_)?tokens|parameter|reasoning",
        hint=PLACE,
    ),
    # The model's own slips, which some servers report as an error of the request.
    _rule(
        Fault.ANSWER,
        "400 422 500",
        codes="json_validate_failed tool_use_failed output_parse_failed failed_generation",
        words=r"failed to (generate|validate|parse) (a )?(valid )?json|does not match the expected schema|"
        r"(generated|model)('s)? (output|json|response)[^.]{0,40}(invalid|not valid|does not|could not|failed)|"
        r"did not (generate|produce) (a )?valid json",
    ),
    # What a gateway says of the server behind it under a status of its own.
    _rule(
        Fault.ENDPOINT,
        "400 422",
        words=r"timed out|request timeout|upstream (connect|request)|overloaded|temporarily unavailable|"
        r"service ?unavailable",
    ),
    # What OpenAI and Groq answer to the tier flex, and charge nothing for.
    _rule(
        Fault.CAPACITY,
        "429 498 503",
        codes="resource_unavailable capacity_exceeded",
        words=r"resource[ _]unavailable|flex tier capacity",
    ),
    # The request's own parts.
    _rule(Fault.PARAMETER, "413 429", words=_TOO_LARGE),
    _rule(
        Fault.PARAMETER,
        "400 413 422 500",
        codes="context_length_exceeded string_above_max_length",
        words=TOO_MANY.pattern,
    ),
    _rule(Fault.PARAMETER, "400 422", words=rf"max_completion_tokens|({_UNKNOWN})", unless=rf"{_FORMAT}|\bmessages\b"),
    _rule(Fault.FORMAT, "400 422 500 501", words=_FORMAT),
    # A page is no answer of the LLM's server: a gateway has nothing behind it, or a firewall was in the way.
    _rule(Fault.AWAY, "400 403 406 500-599", page=True),
    _rule(Fault.ACCOUNT, "403", hint=KEY),
    _rule(Fault.ACCOUNT, "300-399 404 405 410", hint=PLACE),
    _rule(Fault.RATE, "429 498"),
    # Statuses of a gateway that has no server behind it, and of a server that takes no more.
    _rule(Fault.AWAY, "502 503 504 529"),
    _rule(Fault.ENDPOINT, "408 409 421 424 425 444 499 500-599"),
    _rule(Fault.PROMPT),
)


def fault_of(status: int, error: ErrorBody) -> Rule:
    return next(rule for rule in RULES if rule.fits(status, error))


#: Parts of a request that are never left out: without a limit on tokens no budget could be kept.
NEVER_DROPPED: Final = frozenset({"model", "messages", "response_format", "max_tokens", "max_completion_tokens"})
#: How servers speak of `reasoning_effort` without naming it.
_THINKING: Final = re.compile(r"\b(think|thinking|reasoning)\b")
#: Tokens below which a completion's limit is not lowered.
LEAST_TOKENS: Final = 256


@dataclass(slots=True)
class Parameters:
    limit_name: str = "max_tokens"
    dropped: set[str] = field(default_factory=set)
    #: The largest completion that the endpoint allows, by stage.
    ceilings: dict[str, int] = field(default_factory=dict)

    def learn(self, error: ErrorBody, body: Mapping[str, object], stage: str) -> str | None:
        """Change the next requests after a refusal of `body`; returns the change for the log, or None."""
        if TOO_MANY.search(error.words) or "context_length_exceeded" in error.codes:
            return self._lower(body, stage)
        if "max_completion_tokens" in error.words and "max_tokens" in body:
            self.limit_name = "max_completion_tokens"
            return "the limit on tokens is sent as max_completion_tokens"
        for name in _named(error, body):
            if name == "max_tokens":
                self.limit_name = "max_completion_tokens"
                return "the limit on tokens is sent as max_completion_tokens"
            if name not in NEVER_DROPPED:
                self.dropped.add(name)
                return f"{name} is no longer sent"
        return None

    def _lower(self, body: Mapping[str, object], stage: str) -> str | None:
        asked = body.get("max_tokens") or body.get("max_completion_tokens")
        if not isinstance(asked, int) or asked <= LEAST_TOKENS:
            return None
        self.ceilings[stage] = max(LEAST_TOKENS, asked // 2)
        return f"{stage} asks for at most {self.ceilings[stage]} tokens"


def _named(error: ErrorBody, body: Mapping[str, object]) -> list[str]:
    """Parameters of a request that an error names, the one that it blames first."""
    blamed = [name for name in body if error.parameter in {name, f"body.{name}"}]
    # `reasoning_effort` is `reasoningEffort` or `reasoning.effort` to some.
    spelt = {name: re.escape(name.lower()).replace("_", "[_ .-]?") for name in body}
    blamed += [name for name, pattern in spelt.items() if re.search(rf"\b{pattern}\b", error.words)]
    return blamed + [name for name in body if name == "reasoning_effort" and _THINKING.search(error.words)]
