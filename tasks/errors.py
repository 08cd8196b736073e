"""One root error; what a caller can do about it is in the class.

`RetryableError`: the same thing may succeed later. `PermanentError`: it never will as it stands.
"""

from typing import Literal

from config.errors import ConfigError, ThemesError
from tasks.messages import Usage

__all__ = [
    "AccountRefusedError", "BadRequestError", "BatchQueueFullError", "BatchesUnsupportedError", "BudgetExceededError",
    "ConfigError", "DatabaseBusyError", "DatabaseError", "EndpointAwayError", "EndpointDownError",
    "EndpointRefusedError", "GoneError", "InputError", "InvalidAnswerError", "JobNotFoundError", "JobPausedError",
    "JobStoppedError", "ModelRefusedError", "NoCapacityError", "ParkedError", "PermanentError", "RateLimitedError",
    "RedisUnavailableError", "RejectedAnswerError", "RetryableError", "ThemesError", "TruncatedAnswerError",
    "UnreadableError", "WorkerLostError",
]  # fmt: skip


class RetryableError(ThemesError):
    """The same request may succeed later; retry it with backoff."""


class PermanentError(ThemesError):
    """The same request will fail again; record it and go on."""


class RateLimitedError(RetryableError):
    """The endpoint answered 429.

    `retry_after_seconds` is what it asked for, or None when it did not say.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class BatchQueueFullError(RateLimitedError):
    """The provider takes no further batch until some of those that it has are done."""


class NoCapacityError(RetryableError):
    """The endpoint has no capacity for this service tier now; other tiers, and the rate limit, are not concerned.

    `retry_after_seconds` as of a `RateLimitedError`.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class EndpointDownError(RetryableError):
    """The endpoint did not answer, hung up, or answered 5xx."""


class EndpointAwayError(EndpointDownError):
    """The endpoint cannot be reached, hung up, did not answer in time, or said that it is not there (502, 503, 504).

    `is_unreachable`: no connection was made, so the request cannot be at fault.
    """

    def __init__(self, message: str, *, is_unreachable: bool = False) -> None:
        super().__init__(message)
        self.is_unreachable = is_unreachable


class BadRequestError(PermanentError):
    """The endpoint refuses this request for good."""


class BatchesUnsupportedError(BadRequestError):
    """The endpoint takes no batches, or none that could be found again after a lost reply."""


class GoneError(PermanentError):
    """A file or a batch does not exist at the provider, or no longer."""


class EndpointRefusedError(BadRequestError):
    """The endpoint refuses the account, not this request: its key, quota, model. Another endpoint may answer."""


class ModelRefusedError(PermanentError):
    """The model declined to answer, or a content filter cut its answer."""


class InvalidAnswerError(PermanentError):
    """The answer is not what the schema asks for, after one re-ask."""

    #: The beginning of what the model said, where this process has it.
    answer: str = ""


class RejectedAnswerError(InvalidAnswerError):
    """The endpoint itself threw the model's answer away, because it did not keep to the response format."""


class TruncatedAnswerError(PermanentError):
    """The answer was cut off at the model's limit, after splitting and asking with more tokens."""


class WorkerLostError(PermanentError):
    """Worker after worker died while it held this destination."""


class JobStoppedError(ThemesError):
    """A job goes no further here: it was cancelled or paused, or this process is stopping.

    Neither to be retried nor to be recorded as a failure: the destination is unharmed. `usage` is what it had cost
    until then.
    """

    def __init__(self, message: str, *, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.usage = Usage()


class ParkedError(JobStoppedError):
    """A destination waits for answers of a batch: its chunk runs again when they are there."""


class JobPausedError(JobStoppedError):
    """A job cannot go on until a person has done something, and pauses until it is resumed.

    `reason`: its budget is used up, or its team's, a model's price is missing, the LLM refuses the account, or it takes
    no batches. `limit_nano` is the budget's limit that was too small, in nano-dollars; at `until` (seconds since 1970)
    the job goes on by itself.
    """

    def __init__(
        self,
        message: str,
        *,
        job_id: str,
        reason: Literal["budget", "team", "price", "account", "batch"],
        limit_nano: int | None = None,
        until: float | None = None,
    ) -> None:
        super().__init__(message, job_id=job_id)
        self.reason = reason
        self.limit_nano = limit_nano
        self.until = until


class BudgetExceededError(JobPausedError):
    """A job's budget does not allow the next call."""


class AccountRefusedError(JobPausedError):
    """Every endpoint refuses the account: its key, its credit, its model. No other prompt would be answered either."""

    def __init__(self, message: str, *, job_id: str) -> None:
        super().__init__(message, job_id=job_id, reason="account")


class UnreadableError(ThemesError):
    """What Redis holds under a key is not what this project writes there."""


class JobNotFoundError(ThemesError):
    exit_code = 2


class InputError(ThemesError):
    """The destinations cannot be read: a missing, empty or unreadable file, or a bad row under --strict."""

    exit_code = 2


class RedisUnavailableError(ThemesError):
    """Redis cannot be used: unreachable, refused, too old, or set to evict what must stay."""

    exit_code = 2


class DatabaseBusyError(RetryableError):
    """The results database cannot take this now: locked, its disk full or failing. Nothing was written."""


class DatabaseError(ThemesError):
    """The results database cannot be used: unwritable, corrupt, deleted, or of a newer version."""

    exit_code = 2
