"""A plugin of pytest: writes the names of the scripts that the session's server was given to the file SCRIPTS_GIVEN."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from redis import Redis

from scripts.lib.local_redis import LocalRedis

ROOT: Final = Path(__file__).parents[2]
#: Parts of scripts, in their order, and none by itself; with the scripts that begin with them.
PARTS: Final = {
    "llm/funds": ("llm/exchange", "batches/take", "batches/settle", "batches/close"),
    "batches/ended": ("batches/settle", "batches/discard", "batches/close"),
}


def names() -> dict[str, str]:
    """Every script's name (`batches/take`) by the digest that servers know it by."""
    files = [file for place in ("tasks", "workers") for file in (ROOT / place).rglob("lua/*.lua")]
    texts = {f"{file.parent.parent.name}/{file.stem}": file.read_text("utf-8") for file in files}
    for part, users in reversed(PARTS.items()):
        shared = texts.pop(part)
        texts |= {name: shared + texts[name] for name in users}
    return {hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(): name for name, text in texts.items()}


def given(url: str) -> set[str]:
    """The scripts that a server has been given."""
    known = names()
    with Redis.from_url(url) as redis:
        return {name for name, is_there in zip(known.values(), redis.script_exists(*known), strict=True) if is_there}


@pytest.fixture(scope="session", autouse=True)
def _given(redis_server: LocalRedis) -> Iterator[None]:
    yield
    Path(os.environ["SCRIPTS_GIVEN"]).write_text("\n".join(given(redis_server.url)))
