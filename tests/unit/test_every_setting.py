"""No setting that nothing reads, and none that does nothing in silence."""

import re
from pathlib import Path

import pytest

from config.settings import known_keys, load, notices

ROOT = Path(__file__).parents[2]
CODE = "\n".join(
    path.read_text() for folder in ("tasks", "workers", "scripts") for path in (ROOT / folder).rglob("*.py")
)
SILENT = {"performance_optimization.max_concurrent_web_requests"}


@pytest.mark.parametrize("key", sorted(set(known_keys()) - SILENT))
def test_every_setting_is_read_by_the_code(key: str) -> None:
    name = key.rpartition(".")[2]
    properties = {"performance_optimization.redis_url": "redis_url", "database.url": "database_url"}
    attribute = properties.get(key, name)
    assert re.search(rf"\.{attribute}\b", CODE), f"nothing reads {key}"


@pytest.mark.parametrize("key", sorted(SILENT))
def test_a_setting_without_effect_says_so_when_it_is_set(key: str) -> None:
    variable = f"THEMES_{key.upper().replace('.', '__')}"
    assert notices(load(env={})) == []
    (notice,) = notices(load(env={variable: "3"}))
    assert key in notice
    assert "no effect" in notice
