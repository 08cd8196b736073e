"""config.yaml, the settings and docs/reference/configuration.md say the same."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from config import legacy
from config.contradictions import _PAIRS
from config.settings import DEFAULT_FILE, known_keys, load

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_configuration", DOCS / "_generate" / "configuration.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_settings_make_of_it(maker: ModuleType) -> None:
    text = maker.PAGE.read_text()
    assert maker.page(text) == text, "python docs/_generate/configuration.py"


def test_every_setting_stands_once_in_the_file_in_the_model_and_on_the_page(maker: ModuleType) -> None:
    text = DEFAULT_FILE.read_text()
    assert list(maker.meanings(text)) == list(maker.shipped(text)) == list(known_keys())
    assert all(maker.meanings(text).values())
    rows = [line for line in maker.settings_table().splitlines() if line.startswith("| `")]
    assert len(rows) == len(known_keys())


def test_defaults_on_the_page_are_those_of_the_model(maker: ModuleType) -> None:
    values = maker.shipped(DEFAULT_FILE.read_text())
    overrides = {key: value for key, value in values.items() if value != "null" and key != "state_dir"}
    assert load(env={}, overrides=overrides) == load(env={})


def test_every_old_name_and_every_contradiction_is_on_the_page(maker: ModuleType) -> None:
    page = maker.PAGE.read_text()
    assert all(f"| `{name}` |" in page for name in legacy.KNOWN)
    refused = page.partition("## What is refused")[2].partition("## Overlays")[0]
    assert all(f"`{pair.low}`" in refused and f"`{pair.high}`" in refused for pair in _PAIRS)
