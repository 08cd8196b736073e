"""Ctrl-C ends a command at every moment, its first ones included.

While modules are imported the process just ends. Afterwards a signal becomes an exception, which is raised again where
Python drops it. Imports almost nothing: a Ctrl-C before `leave_at_once` shows a traceback.
"""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

#: Seconds until a lost exception is raised again: the callback that has lost it is over by then.
AGAIN_SECONDS: Final = 0.02


def leave_at_once() -> None:
    """From here on Ctrl-C ends the process without a word, with the code that shells expect."""
    signal.signal(signal.SIGINT, _leave)


def raise_from_now_on() -> None:
    """Undo `leave_at_once`: a verb has begun, and may have something to put in order."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise_again_when_lost(KeyboardInterrupt)


def raise_again_when_lost(*kinds: type[BaseException]) -> Callable[[], None]:
    """Raise exceptions of these kinds again where Python ignores them; returns what ends that.

    An exception in a finalizer or a weak reference's callback goes nowhere, and the import system has such a callback
    for every module.
    """
    before = sys.unraisablehook

    def lost(what: Any) -> None:
        if not issubclass(what.exc_type, kinds):
            before(what)
            return

        def again(_number: int, _frame: FrameType | None) -> None:
            raise what.exc_type

        signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)

    def forget() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.unraisablehook = before

    sys.unraisablehook = lost
    return forget


def _leave(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)
