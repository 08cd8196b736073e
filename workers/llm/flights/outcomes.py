"""What the owner of a shared flight tells those who wait for it: an answer that the cache will not have, or an error.

An error that will not pass is as good for the others as for the one who paid for it: it is raised in each of them, and
nobody asks the same again.
"""

from typing import Any, Final

import msgspec

from tasks import errors
from tasks.errors import PermanentError, TruncatedAnswerError

_VALUE: Final = b"v"
_ERROR: Final = b"e"
#: Characters of an error's message that are told.
MAX_MESSAGE: Final = 2_000


class TruncatedError(TruncatedAnswerError):
    """Cut off twice. `complete` is what the last answer had in full, not validated; None where nothing was."""

    def __init__(self, message: str, complete: Any) -> None:
        super().__init__(message)
        self.complete = complete


class _Told(msgspec.Struct, frozen=True):
    kind: str
    message: str
    complete: Any = None


def told_value(stored: bytes) -> bytes:
    """The outcome of a prompt that was answered, as the cache would store it."""
    return _VALUE + stored


def told_error(error: PermanentError) -> bytes:
    """The outcome of a prompt that has no usable answer."""
    complete = error.complete if isinstance(error, TruncatedError) else None
    known = (TruncatedError.__name__, *errors.__all__)
    kind = next(class_.__name__ for class_ in type(error).__mro__ if class_.__name__ in known)
    return _ERROR + msgspec.msgpack.encode(_Told(kind, str(error)[:MAX_MESSAGE], complete))


def heard(outcome: bytes) -> bytes:
    """What the cache would have stored.

    Raises:
        PermanentError: the owner's error, of the same class.
    """
    kind, payload = outcome[:1], outcome[1:]
    if kind != _ERROR:
        return payload
    try:
        told = msgspec.msgpack.decode(payload, type=_Told)
    except msgspec.DecodeError as exc:
        raise PermanentError(f"the prompt failed in another process, whose words cannot be read: {exc}") from exc
    if told.kind == TruncatedError.__name__:
        raise TruncatedError(told.message, told.complete)
    class_ = getattr(errors, told.kind, PermanentError)
    is_ours = isinstance(class_, type) and issubclass(class_, PermanentError)
    raise (class_ if is_ours else PermanentError)(told.message)
