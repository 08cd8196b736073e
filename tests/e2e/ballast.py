"""Loaded into a real worker by `celery worker --include tests.e2e.ballast`: SIGUSR2 takes memory, and gives it back."""

import os
import signal

_ballast: list[bytearray] = []


def _toggle(*_: object) -> None:
    if _ballast:
        _ballast.clear()
    else:
        block = bytearray(int(os.environ["BALLAST_MB"]) * 1024 * 1024)
        # A page is there when it has been written.
        block[::4096] = b"x" * len(block[::4096])
        _ballast.append(block)


signal.signal(signal.SIGUSR2, _toggle)
