"""SIGHUP, which means two things: read the settings again, or the terminal is gone."""

import os
import signal
from collections.abc import Callable


def on_hangup(reload: Callable[[], None]) -> None:
    """Reload on SIGHUP; who was started from a terminal and has lost it ends, as on SIGTERM. Main thread only."""
    had_terminal = has_terminal()

    def hear(*_: object) -> None:
        if had_terminal and not has_terminal():
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            reload()

    signal.signal(signal.SIGHUP, hear)


def has_terminal() -> bool:
    """Whether this process has a controlling terminal now."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
