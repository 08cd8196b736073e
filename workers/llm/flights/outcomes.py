"""What the owner of a shared flight leaves for its waiters: an answer that the cache will not have, or an error.

An error that will not pass is raised in each waiter, so that the prompt is not asked again.
"""

from typing import Any, Final

import msgspec

from tasks import errors
from tasks.errors import PermanentError, TruncatedAnswerError

_VALUE: Final = b"v"
_ERROR: Final = b"e"
#: Characters of an error's message that are error.
MAX_MESSAGE: Final = 2_000


class TruncatedError(TruncatedAnswerError):
    """Cut off twice. `complete` is what the last answer had in full, not validated; None where nothing was."""

    def __init__(self, message: str, complete: Any) -> None:
        super().__init__(message)
        self.complete = complete


class _Error(msgspec.Struct, frozen=True):
    kind: str
    message: str
    complete: Any = None


def encode_value(stored: bytes) -> bytes:
    return _VALUE + stored


def encode_error(error: PermanentError) -> bytes:
    complete = error.complete if isinstance(error, TruncatedError) else None
    known = (TruncatedError.__name__, *errors.__all__)
    kind = next(class_.__name__ for class_ in type(error).__mro__ if class_.__name__ in known)
    return _ERROR + msgspec.msgpack.encode(_Error(kind, str(error)[:MAX_MESSAGE], complete))


def decode_outcome(outcome: bytes) -> bytes:
    """What the cache would have stored. Raises `PermanentError`: the owner's error, of the same class."""
    kind, payload = outcome[:1], outcome[1:]
    if kind != _ERROR:
        return payload
    try:
        error = msgspec.msgpack.decode(payload, type=_Error)
    except msgspec.DecodeError as exc:
        raise PermanentError(f"the prompt failed in another process, whose words cannot be read: {exc}") from exc
    if error.kind == TruncatedError.__name__:
        raise TruncatedError(error.message, error.complete)
    class_ = getattr(errors, error.kind, PermanentError)
    is_ours = isinstance(class_, type) and issubclass(class_, PermanentError)
    raise (class_ if is_ours else PermanentError)(error.message)
