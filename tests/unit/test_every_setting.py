"""No setting that nothing reads, and none that does nothing in silence."""

import re
from pathlib import Path

import pytest

from config.settings import known_keys, load, notices

ROOT = Path(__file__).parents[2]
CODE = "\n".join(
    path.read_text() for folder in ("tasks", "workers", "scripts") for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("key", sorted(known_keys()))
def test_every_setting_is_read_by_the_code(key: str) -> None:
    name = key.rpartition(".")[2]
    properties = {"performance_optimization.redis_url": "redis_url", "database.url": "database_url"}
    attribute = properties.get(key, name)
    assert re.search(rf"\.{attribute}\b", CODE), f"nothing reads {key}"


def test_an_overlay_that_is_asked_for_is_not_ignored_in_silence() -> None:
    (notice,) = notices(load(env={}), {"THEMES_ENV": "production"})
    assert "THEMES_ENV" in notice
