"""What a provider's refusal means for its files and batches, where it means more than it does for calls."""

import re
from collections.abc import Mapping
from typing import Final

from tasks.errors import BatchesUnsupportedError, BatchQueueFullError, GoneError, ThemesError
from workers.llm.batches.batch import QUEUE_FULL
from workers.llm.endpoints.error_body import ErrorBody
from workers.llm.endpoints.faults import Fault, fault_of
from workers.llm.endpoints.server_errors import ServerErrors

OTHER_TIER: Final = "choose another tier for this endpoint, such as --tier standard"
#: Statuses and words of a server without such a path, and words of one that does not have an object.
_NO_PATH: Final = frozenset({404, 405, 501})
_NO_BATCHES: Final = re.compile(
    r"(\bbatch(es)?\b|endpoint|\burl\b|route|/files|files api|file upload)[^.]{0,60}"
    r"(not (supported|implemented|available|allowed|enabled)|unsupported|unknown)|"
    r"(unsupported|unknown|invalid|unexpected) (request )?(batch|endpoint|url|route|path)|not implemented"
)
_MISSING: Final = re.compile(
    r"no such (file|batch|job|object)|"
    r"\b(file|batch|job)\b[^.]{0,80}(not found|not exist|no longer|was deleted|has expired)|"
    r"\b(file|batch|job)_not_found\b"
)


def refusal(
    errors: ServerErrors, status: int, headers: Mapping[str, str], error: ErrorBody, *, about: str, is_list: bool
) -> ThemesError:
    """The error of a response: that for calls, unless it is about a full queue, a lost object, or no batches at all.

    `about` is the object that was asked about; `is_list` says that the path names none.
    """
    found = errors.of(status, headers, error)
    if status in range(400, 500) and QUEUE_FULL.search(_all(error)):
        return BatchQueueFullError(str(found), retry_after_seconds=errors.wait_seconds(headers, error))
    if about and _is_gone(status, error, about):
        return GoneError(str(found))
    if is_list and _is_unsupported(status, error):
        said = errors.without_secret(error.message)
        return BatchesUnsupportedError(f"{errors.place}: takes no batches ({status} {said}): {OTHER_TIER}")
    return found


def _all(error: ErrorBody) -> str:
    return "\n".join((error.words, *error.codes))


def _is_gone(status: int, error: ErrorBody, about: str) -> bool:
    """Whether the object does not exist, which is not that there is no such path."""
    is_missing, is_named = bool(_MISSING.search(_all(error))), about.lower() in error.words
    if status in {404, 410}:
        return is_missing or is_named
    return status in {400, 422} and is_missing and (is_named or "file" in error.words)


def _is_unsupported(status: int, error: ErrorBody) -> bool:
    if status in {400, 422, *_NO_PATH} and _NO_BATCHES.search(error.words):
        return True
    # A model or a key that is refused is not the server's lack of batches.
    rule = fault_of(status, error)
    return status in _NO_PATH and not (rule.has_words and rule.fault is Fault.ACCOUNT)
