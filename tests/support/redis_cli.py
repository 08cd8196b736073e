"""Where a `redis-cli` is: on the PATH, or beside the oldest server that we support."""

import shutil
from pathlib import Path

from tests.support.oldest import oldest_server


def redis_cli() -> Path | None:
    """The path of a `redis-cli`; None where there is none."""
    if found := shutil.which("redis-cli", path="/usr/local/bin:/usr/bin"):
        return Path(found)
    beside = oldest_server()
    return beside.with_name("redis-cli") if beside else None
