"""Every command of the guide to costs, as it stands there, against the sandbox."""

import re
from pathlib import Path

import pytest

from tests.e2e.conftest import Engine
from tests.e2e.test_batches import PRICES, QUICK, books, rows

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "cost.md"
COMMANDS = re.findall(r"^    themes (.+)$", GUIDE.read_text("utf-8"), re.MULTILINE)


@pytest.fixture
def priced(stack: Engine) -> Engine:
    stack.env |= PRICES | QUICK
    stack.end("consumer")
    stack.themes("consumer-2", "consumer")
    stack.sandbox("--latency", "0", "--batches", "delay=0.4")
    stack.themes("a", "worker", "--name", "a")
    return stack


def test_the_guide_leads_from_the_price_to_half_of_it(priced: Engine) -> None:
    cities = priced.folder / "cities.csv"
    cities.write_text(rows(3), "utf-8")
    said: dict[str, str] = {}
    job_id = ""
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        words = [{"cities.csv": str(cities), "JOB": job_id}.get(word, word) for word in command.split()]
        # Prices are those of a provider; the sandbox has none of that name.
        env = {"OPENAI_BASE_URL": "https://api.openai.com/v1"} if words[0] == "prices" else {}
        ended = priced.run(*words, **env)
        assert ended.returncode == 0, f"themes {command}: {ended.stderr}"
        said[command] = ended.stdout + ended.stderr
        job_id = ended.stdout.strip().splitlines()[-1] if "--wait" in words else job_id
    standard, batch = (_dollars(said[f"enqueue cities.csv{more} --dry-run"]) for more in ("", " --tier batch"))
    assert batch == pytest.approx(standard / 2, rel=0.02)
    assert "prices: of the tier batch, 0.5 of standard" in said["enqueue cities.csv --tier batch --dry-run"]
    _, cost, saved = books(priced, job_id)
    assert cost == pytest.approx(saved), "half was saved"
    assert "saved" in said["status JOB"]


def _dollars(text: str) -> float:
    """The expected cost of a dry run."""
    found = re.search(r"^ *cost +\$([\d.,]+)", text, re.MULTILINE)
    assert found, text
    return float(found[1].replace(",", ""))
