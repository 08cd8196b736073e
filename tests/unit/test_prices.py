"""Prices: found as genai-prices finds them, by date, time and length, checked at the border, and never over the net."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import genai_prices
import pytest
from genai_prices import data_snapshot
from genai_prices import types as theirs

from config.settings import Settings, load
from config.values import Price
from tasks.errors import ConfigError
from tasks.jobs import budget
from tasks.prices.rates import Offer, Rates, TokenCounts
from tasks.prices.sources import packaged
from tasks.prices.table import PriceTable

OPENAI, ANY = "https://api.openai.com/v1", "http://127.0.0.1:4000/v1"
#: A Monday morning, and a Sunday night a year later.
MOMENTS = (datetime(2026, 2, 2, 7, 30, tzinfo=UTC), datetime(2027, 2, 7, 23, 10, tzinfo=UTC))
COUNTS = (
    TokenCounts(1_000, 500),
    TokenCounts(150_000, 4_000, cached=100_000, reasoning=3_000),
    TokenCounts(300_000, 2_000, cached=200_000, written=50_000, written_1h=20_000),
)

ReadSettings = Callable[..., Settings]


def _read(**env: str) -> Settings:
    return load(env={"THEMES_STATE_DIR": "var", **env})


def _names(match: Any) -> Iterator[str]:
    """Names that a clause of the package means, as far as they can be told from it."""
    for name in ("equals", "starts_with", "contains", "ends_with"):
        if text := getattr(match, name, None):
            yield text
    for part in getattr(match, "or_", []):
        yield from _names(part)


def _their_usd(provider: Any, model: Any, counts: TokenCounts, at: datetime) -> float | None:
    usage = theirs.Usage(
        input_tokens=int(counts.prompt), output_tokens=int(counts.completion), cache_read_tokens=int(counts.cached),
        cache_write_tokens=int(counts.written), cache_write_1h_tokens=int(counts.written_1h),
        output_reasoning_tokens=int(counts.reasoning),
    )  # fmt: skip
    return float(model.calc_price(usage, provider, genai_request_timestamp=at).total_price)


def test_every_model_of_the_list_costs_what_the_package_says() -> None:
    catalogue = packaged()
    assert catalogue is not None
    compared = set()
    providers = data_snapshot.get_snapshot().providers
    for provider in providers:
        for name in {name for model in provider.models for name in (model.id, *_names(model.match))}:
            model = provider.find_model(name, all_providers=providers)
            ours = catalogue._model(catalogue.providers[provider.id], name.lower())
            assert (model and model.id) == (ours and ours.id), (provider.id, name)
            key = provider.id, ours and ours.id
            if model is None or ours is None or key in compared or not (offer := Offer.of_model(ours, provider.id, "")):
                continue
            compared.add(key)
            for counts in COUNTS:
                for at in MOMENTS:
                    expected = _their_usd(provider, model, counts, at)
                    assert offer.at(at).usd(counts) == pytest.approx(expected, rel=1e-9, abs=1e-12), (name, counts)
    assert len(compared) > 2_000


@pytest.mark.parametrize("name", ["gpt-4o-mini", "gpt-4o-mini-2024-07-18", "openai/gpt-4o-mini", "GPT-4o-mini"])
def test_a_model_is_found_as_people_write_it(name: str) -> None:
    offer = PriceTable(_read().llm).offer(OPENAI, name)
    assert offer
    assert (offer.provider, offer.model) == ("openai", "gpt-4o-mini")
    assert offer.source == f"genai-prices {genai_prices.__version__}"
    assert offer.at() == Rates.of_price(Price(0.15, 0.60, 0.075))


@pytest.mark.parametrize(
    ("base_url", "name", "provider", "prompt_usd"),
    [
        (ANY, "openai/gpt-4o-mini", "openai", 0.15),
        (ANY, "azure/gpt-4o", "azure", 2.5),
        (ANY, "anthropic.claude-3-haiku-20240307-v1:0", "aws", 0.25),
        (ANY, "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "aws", 3.3),
        (ANY, "bedrock/anthropic.claude-3-haiku-20240307-v1:0", "aws", 0.25),
        (ANY, "openrouter/openai/gpt-4o-mini", "openrouter", 0.15),
        (ANY, "groq/openai/gpt-oss-20b", "groq", 0.075),
        (ANY, "litellm_proxy/gemini/gemini-2.5-pro", "google", 1.25),
        ("https://openrouter.ai/api/v1", "openai/gpt-4o-mini", "openrouter", 0.15),
        ("https://mine.openai.azure.com/openai/v1", "gpt-4o-mini-2024-07-18", "azure", 0.15),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "models/gemini-2.5-flash", "google", 0.3),
        ("https://api.anthropic.com/v1", "claude-3-haiku-20240307", "anthropic", 0.25),
        ("https://api.groq.com/openai/v1", "llama-3.3-70b-versatile", "groq", 0.59),
        (OPENAI, "gpt-5.2-20251211", "openai", 1.75),
    ],
)
def test_a_seller_is_known_by_the_address_or_by_what_stands_before_the_model(
    base_url: str, name: str, provider: str, prompt_usd: float
) -> None:
    offer = PriceTable(_read().llm).offer(base_url, name)
    assert offer
    assert (offer.provider, offer.at().prompt[0]) == (provider, (-1, prompt_usd))


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        # A server of one's own costs what it costs, whatever others ask for the same weights.
        (ANY, "gpt-4o-mini"), (ANY, "openai/gpt-oss-20b"), (ANY, "google/gemma-3-27b-it"), (ANY, "llama3.1:8b"),
        (ANY, "mistralai/Mistral-7B-Instruct-v0.3"), (ANY, "deepseek-ai/DeepSeek-R1"), (ANY, "a/b/c"), (ANY, "/"),
        (ANY, "ollama/openai/gpt-4o-mini"), (ANY, "github_copilot/gpt-4o"), (ANY, "gpt-4o/" * 30),
        (OPENAI, "claude-3-haiku"), (OPENAI, "gpt-99"), (OPENAI, ""),
    ],
)  # fmt: skip
def test_what_is_not_in_the_list_stays_unknown(base_url: str, name: str) -> None:
    assert PriceTable(_read().llm).offer(base_url, name) is None


def test_the_answer_s_model_counts_before_the_one_that_was_asked_for() -> None:
    table = PriceTable(_read(OPENAI_BASE_URL="https://mine.openai.azure.com/openai/v1", THEMES_MODEL="ours").llm)
    counts = TokenCounts(1_000_000, 0)
    assert table.usd("ours", counts) is None
    assert table.usd("ours", counts, "gpt-4o-mini-2024-07-18") == 0.15


def test_the_setting_wins_over_the_file_and_the_file_over_the_list(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text("gpt-4o: {input_usd: 7, output_usd: 8}\ngpt-4o-mini: {input_usd: 5, output_usd: 6}\n")
    own = "{gpt-4o-mini: {input_usd: 1, output_usd: 2, cached_input_usd: 0.5, cache_write_usd: 3}}"
    table = PriceTable(_read(THEMES_LLM__PRICES=own, THEMES_LLM__PRICES_FILE=str(file)).llm)
    offers = [table.offer(OPENAI, name) for name in ("gpt-4o-mini", "gpt-4o", "gpt-4.1")]
    sources = ["llm.prices", f"llm.prices_file {file}", f"genai-prices {genai_prices.__version__}"]
    assert [offer and offer.source for offer in offers] == sources
    assert offers[0]
    counts = TokenCounts(1_000_000, 1_000_000, cached=400_000, written=100_000)
    assert offers[0].at().usd(counts) == pytest.approx(0.5 * 1 + 0.4 * 0.5 + 0.1 * 3 + 1 * 2)


DATA = """[{"id": "acme", "api_pattern": "https://acme\\\\.example", "pricing_urls": ["https://a.example"], "models": [
  {"id": "m-1", "match": {"or": [{"equals": "M-1"}, {"and": [{"starts_with": "m-1-"}, {"ends_with": "-latest"}]}]},
   "prices": [
     {"prices": {"input_mtok": {"base": 1, "tiers": [{"start": 1000, "price": 3}]}, "output_mtok": 4}},
     {"constraint": {"start_date": "2026-06-01"}, "prices": {"input_mtok": 2, "output_mtok": 8,
      "requests_kcount": 5}},
     {"constraint": {"start_time": "22:00:00Z", "end_time": "06:00:00Z"}, "prices": {"input_mtok": 0.5}}]},
  {"id": "free", "match": {"contains": "free"}, "prices": {}}]}]"""


def test_a_file_of_the_package_s_own_form_has_dates_hours_and_lengths(tmp_path: Path) -> None:
    file = tmp_path / "data.json"
    file.write_text(DATA)
    table = PriceTable(_read(THEMES_LLM__PRICES_FILE=str(file)).llm)
    offer = table.offer("https://acme.example/v1", "m-1-2026-latest")
    assert offer
    assert offer.source.startswith(f"llm.prices_file {file} of 20")

    def usd(month: int, hour: int, prompt: int) -> float:
        return offer.at(datetime(2026, month, 1, hour, tzinfo=UTC)).usd(TokenCounts(prompt, 1000)) * 1e6

    assert usd(5, 12, 1000) == 1000 * 1 + 1000 * 4
    assert usd(5, 12, 1001) == 1001 * 3 + 1000 * 4, "beyond a step all tokens have its price"
    assert usd(6, 12, 1001) == pytest.approx(1001 * 2 + 1000 * 8 + 5000), "and a price for each call"
    assert usd(6, 23, 1000) == usd(5, 5, 1000) == 500
    assert table.offer("https://acme.example/v1", "free-1") is None, "listed without a price"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1]", "Expected `object`"),
        (DATA.replace('"base": 1', '"base": -1'), ">= 0"),
        (DATA.replace('"base": 1', '"base": "1"'), "$[0].models[0].prices"),
        (DATA.replace('"output_mtok": 4', '"output_mtok": NaN'), "malformed"),
        (DATA.replace('{"contains": "free"}', '{"regex": "("}'), "unterminated subpattern"),
        (DATA[:-5], "truncated"),
        ("[" * 100_000, "Expected `object`"),
        ("m: {input_usd: 1}", "input_usd: 0.15"),
        ("m: {input_usd: -1, output_usd: 1}", "not below 0"),
        ("{", "not valid YAML"),
        ("\udcff", "utf-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_name_and_the_mend(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "prices"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as refused:
        PriceTable(_read(THEMES_LLM__PRICES_FILE=str(file)).llm)
    message = str(refused.value)
    assert message.startswith("llm.prices_file")
    assert str(file) in message
    assert says in message
    assert len(message.splitlines()) == 1


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"llm\.prices_file: .*none cannot be read: No such file"):
        PriceTable(_read(THEMES_LLM__PRICES_FILE=str(tmp_path / "none")).llm)


def test_a_budget_reserves_the_dearest_price_that_can_apply() -> None:
    endpoints = (
        "{a: {base_url: https://api.anthropic.com/v1}, b: {base_url: https://bedrock-runtime.eu-west-1.amazonaws.com, "
        "models: {claude-sonnet-4-5: eu.anthropic.claude-sonnet-4-5-20250929-v1:0}}}"
    )
    table = PriceTable(_read(THEMES_LLM__ENDPOINTS=endpoints).llm)
    # Bedrock's regions are a tenth dearer; what a prompt is dearest for is being kept in the cache for an hour.
    assert table.most_nano("claude-sonnet-4-5", 100_000, 1_000) == 100_000 * 6_600 + 1_000 * 16_500
    alone = PriceTable(_read(OPENAI_BASE_URL="https://api.anthropic.com/v1").llm)
    assert alone.most_nano("claude-sonnet-4-5", 200_000, 1_000) == 200_000 * 6_000 + 1_000 * 15_000
    assert alone.most_nano("claude-sonnet-4-5", 200_001, 1_000) == 200_001 * 12_000 + 1_000 * 22_500
    other = PriceTable(_read(THEMES_LLM__ENDPOINTS=endpoints.replace("api.anthropic.com", "acme.example")).llm)
    assert other.most_nano("claude-sonnet-4-5", 1, 1) is None, "one of them has no price"
    assert other.unpriced(["claude-sonnet-4-5"]) == ["claude-sonnet-4-5"]


def test_models_without_a_price_are_said_and_a_budget_for_them_is_refused() -> None:
    settings = _read(THEMES_MODEL="gpt-99", THEMES_LLM__ROLES="{judge: gpt-4o-mini}", OPENAI_BASE_URL=OPENAI)
    assert budget.unpriced(settings) == ["gpt-99"]
    with pytest.raises(ConfigError, match=r"gpt-99 has no price: add it to llm\.prices"):
        budget.check(1.0, settings)
    budget.check(1.0, _read(THEMES_MODEL="gpt-4o-mini", OPENAI_BASE_URL=OPENAI))


def test_reading_the_list_imports_neither_the_package_nor_what_it_needs() -> None:
    program = (
        "import sys; from config.sections import LlmSettings; from tasks.prices.table import PriceTable; "
        "assert 'tasks.prices.data' not in sys.modules; "
        f"assert PriceTable(LlmSettings()).offer({OPENAI!r}, 'gpt-4o-mini'); "
        "print([name for name in ('genai_prices', 'pydantic', 'httpx2') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
