"""A job's page while a provider works on its batches: what it shows, that it follows, and how it looks."""

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from tests.e2e.conftest import Engine
from tests.e2e.test_dashboard import _dashboard, _get
from tests.support.batches import batch, put
from tests.support.browser import Page, page
from tests.support.looks import WIDTHS, broken_words, overflow, violations

SAID = "enqueued token limit of the organization is reached for this model: " + "tokens " * 8


def _ask(stack: Engine, done_there: int, **more: Any) -> None:
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        (job,) = redis.zrange("themes:jobs", 0, 0)
        now = time.time()
        sent = batch("a", requests=12_400, done_there=done_there, formed_at=now - 4800, asked_at=now - 4800, **more)
        ended = batch("b", state="ended", end="expired", answered=60, unanswered=40, ended_at=now - 10, saved_usd=1.23)
        put(redis, job.decode(), sent, ended, waiting=500)


@pytest.mark.browser
async def test_a_page_follows_the_batches_of_its_job_and_fits(stack: Engine, chromium: str, tmp_path: Path) -> None:
    later = asyncio.to_thread
    url = await later(_dashboard, stack)
    stack.themes("w", "worker", "--name", "w")
    said = await later(lambda: stack.run("enqueue", "-", "--wait", "--name", "cities", stdin="Kyoto, Japan\n"))
    job = said.stdout.strip()
    assert '<p class="batches" id="batches" hidden></p>' in (await later(_get, f"{url}/jobs/{job}"))[1]
    line = "document.getElementById('batches')"
    async with page(chromium) as tab:
        await tab.open(f"{url}/jobs/{job}")
        assert await tab.value(f"{line}.hidden")
        await later(_begin_again, stack, job)
        await tab.open(f"{url}/jobs/{job}")
        for done_there in (8_100, 9_500):
            await later(_ask, stack, done_there)
            shown = f"Batches: 1 open (12,400 requests; {done_there:,} done there), oldest 1h 20m; "
            await tab.until(f"!{line}.hidden && {line}.textContent.startsWith({msgspec.json.encode(shown).decode()})")
        await tab.until("document.getElementById('state').textContent === 'waiting'")
        assert await tab.value(f"{line}.textContent.endsWith('500 wait to be sent; 40 expired; $1.23 saved')")
        assert "Waits for batches at llm: the oldest was sent 1h 20m ago." in await tab.value(
            "document.getElementById('verdict').textContent"
        )
        await later(_ask, stack, 9_500, said=SAID)
        await tab.until(f"{line}.textContent.includes('last trouble: enqueued token limit')")
        assert await _faults(tab, f"{url}/jobs/{job}", tmp_path) == []
        await tab.open(f"{url}/jobs")
        assert "12,400 requests; 9,500 done there" in await tab.text()
        assert not tab.errors


def _begin_again(stack: Engine, job: str) -> None:
    """The job as it stands while nothing of it is in a worker's hands."""
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        fields = {"state": "running", "finished_at": "", "total": 60, "rate_at": 1.0, "ended": 0}
        redis.hset(f"themes:job:{job}", mapping=fields)  # type: ignore[arg-type]  # Redis takes them all


async def _faults(tab: Page, place: str, folder: Path) -> list[Any]:
    """What is wrong with the page at each width, in light and dark; pictures of it are kept beside the logs."""
    found: list[Any] = []
    for width in WIDTHS:
        await tab.size(width, 900)
        await tab.open(place)
        found += [(width, said) for said in await broken_words(tab)]
        found += [(width, "wider than the window") for more in [await overflow(tab)] if more > 0]
        for dark in (False, True):
            await tab.dark(on=dark)
            found += [(width, dark, said) for said in await violations(tab)]
            await tab.picture(folder / f"batches-{width}-{'dark' if dark else 'light'}.png")
    return found
