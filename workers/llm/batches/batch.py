"""What a provider says of a batch, checked: whatever stands in a field, a value that can be relied on or one error."""

import re
from typing import Any, Final

import msgspec

from tasks.errors import EndpointDownError
from tasks.texts import one_line
from workers.llm.batches.dialects import STATES, BatchDialect, State
from workers.llm.endpoints.error_body import ERROR_CHARACTERS, error_value
from workers.llm.limits.headers import unix_time

#: The name in a batch's metadata under which our mark stands.
TAG_NAME: Final = "themes_tag"
#: Requests that no batch has more of; a larger number is none.
MOST_REQUESTS: Final = 10_000_000
#: No time in any unit is as large.
MOST_TIME: Final = 1e20
#: Errors of a batch that are shown.
_SHOWN: Final = 3
#: An id stands in the path of a request: it leads nowhere else.
_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:\-]{0,199}", re.ASCII)
#: How providers say that there are too many batches already, before or after they have taken one.
QUEUE_FULL: Final = re.compile(
    r"enqueued|token_limit_exceeded|batch queue|"
    r"(too many|limit[^.]{0,30}|maximum[^.]{0,30}) (active |concurrent |pending |running |in[ _-]progress )?"
    r"(batches|batch jobs)",
    re.IGNORECASE,
)


class ProviderBatch(msgspec.Struct, frozen=True):
    """A batch as the provider has it.

    `results` are the files of answers and of errors, those that exist. `said` are the provider's own words about what
    is wrong with it. `created_at` is in seconds since 1970, 0 where it is not told.
    """

    id: str
    state: State
    tag: str = ""
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_file_id: str = ""
    results: tuple[str, ...] = ()
    created_at: float = 0.0
    said: str = ""
    #: When the provider wants to be asked again.
    retry_after_seconds: float | None = None

    @property
    def is_refused_for_now(self) -> bool:
        """Whether it failed only because the provider had too much waiting: the same batch may do later."""
        return self.state == "failed" and bool(QUEUE_FULL.search(self.said))


def read_batch(data: Any, dialect: BatchDialect, *, retry_after_seconds: float | None = None) -> ProviderBatch:
    """Read a batch object. A state that no provider documents is taken for running. Raises EndpointDownError."""
    if not isinstance(data, dict):
        raise EndpointDownError("the answer is no batch")
    inputs = data.get(dialect.input_field)
    results = (data.get(dialect.output_field), data.get(dialect.error_field))
    counts = data.get(dialect.counts_field)
    counts = counts if isinstance(counts, dict) else data
    total, completed, failed = (_count(counts.get(name)) for name in dialect.count_names)
    return ProviderBatch(
        id=read_id(data, "batch"),
        state=STATES.get(status_word(data), "running"),
        tag=tag_of(data),
        total=total,
        completed=completed,
        failed=failed,
        input_file_id=_id_or_none(inputs[0] if isinstance(inputs, list) and inputs else inputs),
        results=tuple(dict.fromkeys(filter(None, map(_id_or_none, results)))),
        created_at=created_at(data),
        said=words_of(data.get("errors") or data.get("error")),
        retry_after_seconds=retry_after_seconds,
    )


def read_id(data: Any, what: str) -> str:
    """The id of an object. Raises EndpointDownError."""
    found = _id_or_none(data.get("id")) if isinstance(data, dict) else ""
    if not found:
        raise EndpointDownError(f"the answer is no {what}: it has no id that can be used")
    return found


def _id_or_none(value: Any) -> str:
    return value if isinstance(value, str) and _ID.fullmatch(value) else ""


def status_word(data: dict[Any, Any]) -> str:
    """The provider's word for a batch's state, in lower case. Raises EndpointDownError."""
    word = data.get("status")
    if not isinstance(word, str) or not word.strip():
        raise EndpointDownError("the answer is no batch: it has no status")
    return one_line(word, 40).lower()


def tag_of(data: dict[Any, Any]) -> str:
    metadata = data.get("metadata")
    tag = metadata.get(TAG_NAME) if isinstance(metadata, dict) else None
    return tag if isinstance(tag, str) else ""


def created_at(data: dict[Any, Any]) -> float:
    """When an object was made, in seconds since 1970; 0 where that is not told."""
    told = data.get("created_at")
    is_number = isinstance(told, int | float) and not isinstance(told, bool) and 0 <= told < MOST_TIME
    return (unix_time(str(told)) or 0.0) if is_number or isinstance(told, str) else 0.0


def _count(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= len(str(MOST_REQUESTS)):
        value = int(value)
    is_count = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST_REQUESTS
    return int(value) if is_count else 0


def words_of(error: Any) -> str:
    """Errors of any shape as one line: the code and the message of each; empty where there are none."""
    if isinstance(error, dict) and isinstance(error.get("data"), list):
        error = error["data"]
    shown = error[:_SHOWN] if isinstance(error, list) else [error]
    return one_line("; ".join(filter(None, map(_words, shown))), ERROR_CHARACTERS)


def _words(error: Any) -> str:
    if not error or (isinstance(error, dict) and not any(error.values())):
        return ""
    code, message = error.get("code") if isinstance(error, dict) else None, error_value(error).message
    is_new = isinstance(code, str | int) and str(code).lower() not in message.lower()
    return f"{code}: {message}" if is_new else message
