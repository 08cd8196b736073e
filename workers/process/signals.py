"""SIGHUP, which means two things: read the settings again, or the terminal is gone."""

import os
import signal
from collections.abc import Callable


def on_hangup(reload: Callable[[], None]) -> None:
    """Reload on SIGHUP; a process that has lost its terminal ends, as on SIGTERM. Main thread only."""
    had_terminal = has_terminal()

    def hear(*_: object) -> None:
        if had_terminal and not has_terminal():
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            reload()

    signal.signal(signal.SIGHUP, hear)


def has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
