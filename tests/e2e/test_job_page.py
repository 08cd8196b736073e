"""The pages of a job that has partial and failed destinations, in a real browser: what they show, and how they fit."""

import asyncio

import msgspec
import pytest

from tests.e2e.conftest import Engine, until
from tests.e2e.test_dashboard import _dashboard, _get
from tests.support.browser import Page, page
from workers.dashboard.job_words import left_words
from workers.observe.format import dollars, duration, rate

LONG = " ".join(["Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch"] * 3)
HEBREW = "\u05e2\u05d9\u05e8 <b>\u05d2\u05d3\u05d5\u05dc\u05d4</b> \U0001f3bf"
#: Cells of tables that are narrower than their longest word: their text is drawn beyond them.
NARROW = """[...document.querySelectorAll('main table')].flatMap(table => [...table.querySelectorAll('th, td')])
  .filter(cell => cell.offsetParent && cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent.trim())"""


def _input() -> str:
    towns = "".join(f"Town {number},Utopia\n" for number in range(57))
    return f"name,country\n{towns}{LONG},\n{HEBREW},Utopia\nNice,France\n"


@pytest.mark.browser
async def test_a_job_with_partial_and_failed_destinations_is_shown_as_it_goes_and_fits(
    stack: Engine, chromium: str
) -> None:
    later = asyncio.to_thread
    # 60 destinations of 16 calls over 15 connections: some 8 s, however quick the machine is, for a chart of its rate.
    stack.sandbox("--latency", "120ms")
    stack.ask_sandbox("/faults", ["400=1,match=Nice", "400=0.2,match=give the price level"])
    url = await later(_dashboard, stack)
    job = (await later(lambda: stack.run("enqueue", "-", "--name", LONG[:200], stdin=_input()))).stdout.strip()
    async with page(chromium) as tab:
        await tab.open(f"{url}/jobs/{job}")
        stack.themes("w", "worker", "--name", "w")
        await tab.until("document.getElementById('sentence').textContent.includes('left.')")
        # What is grouped by the server comes while the job runs.
        await tab.until("document.querySelectorAll('.problem').length === 1")
        await tab.until("document.getElementById('sentence').textContent.startsWith('Finished in')")
        await tab.until("document.getElementById('duration') !== null")
        status = await later(stack.status, job)
        shown = await tab.value(
            "Object.fromEntries(['ended', 'partial', 'failed'].map(id => [id, document.getElementById(id).innerText]))"
        )
        assert shown == {"ended": "60", "partial": str(status["partial"]), "failed": "1"}
        assert status["partial"] > 0
        assert f"{60 - status['partial'] - 1} complete, {status['partial']} partial, 1 failed" in await tab.text()
        assert "BadRequestError: BadRequestError" not in await tab.text()
        assert f"themes retry {job} --only BadRequestError --partial" in await tab.value(
            "document.querySelector('.problem code').textContent.trim()"
        )
        await _filters(tab, status["partial"])
        await tab.value("document.getElementById('chart').focus()")
        await _press(tab, "ArrowLeft")
        assert "/s at " in await tab.value("document.getElementById('at').textContent")
        assert await tab.value("document.querySelectorAll('#chart .dot').length") == 1
        await _words(tab)
        await _fits(tab, url, job)
        assert not tab.errors
    await later(_lists, stack, url, job)


async def _press(tab: Page, key: str) -> None:
    await tab.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key)


async def _words(tab: Page) -> None:
    """What the page writes by itself is what the server writes."""
    numbers = [0.00007, 0.0123, 0.406, 0.9, 1.2, 9.4, 42, 59.7, 190, 729, 3_601, 5_940, 86_000, 101_482, 123_456.7]
    for name, written in (("duration", duration), ("left", left_words), ("rate", rate), ("money", dollars)):
        module = "(await import('/jobs/assets/words.js'))"
        made = await tab.value(f"(async () => {msgspec.json.encode(numbers).decode()}.map({module}.{name}))()")
        assert made[1:] == [written(number) for number in numbers][1:], name
    assert made[-1] == "$123,456.70"


async def _filters(tab: Page, partial: int) -> None:
    """Chips and the bar's legend choose rows, and choose all again."""
    visible = "[...document.querySelectorAll('#rows tr')].filter(row => !row.hidden).map(row => row.dataset.state)"
    for place, state, count in ((".filters", "failed", 1), (".legend", "partial", min(50, partial))):
        await tab.value(f"document.querySelector('{place} [data-filter={state}]').click()")
        await tab.until(f"{visible}.join() === {msgspec.json.encode(','.join([state] * count)).decode()}")
        assert await tab.value(f"document.querySelectorAll('[data-filter={state}][aria-current=true]').length") == 2
    await tab.value("document.querySelector('.filters [data-filter=running]').click()")
    await tab.until("document.getElementById('none').textContent === 'None running.'")
    await tab.value("document.querySelector('.filters [data-filter=all]').click()")
    await tab.until(f"{visible}.length === 50")


async def _fits(tab: Page, url: str, job: str) -> None:
    places = ("/jobs", f"/jobs/{job}", f"/jobs/{job}/destinations?sort=name", f"/jobs/{job}/destinations?state=failed")
    for width in (390, 768, 1440):
        await tab.size(width, 900)
        for dark in (False, True):
            await tab.dark(on=dark)
            for place in places:
                await tab.open(url + place)
                assert await tab.value("document.documentElement.scrollWidth") <= width, (place, width)
                assert await tab.value(NARROW) == [], (place, width)
                assert await tab.value("document.querySelectorAll('main b, th:not([scope])').length") == 0, place
    await tab.open(f"{url}/jobs/{job}")
    rows = "[...document.querySelectorAll('#rows tr')].filter(row => row.offsetParent).length"
    assert await tab.value(rows) == 25
    await tab.size(390, 900)
    await tab.until(f"{rows} === 10")
    assert (
        await tab.value("[...document.querySelectorAll('.tiles > div')].filter(tile => tile.offsetParent).length") == 4
    )


def _lists(stack: Engine, url: str, job: str) -> None:
    """The destinations by state and order, with numbers of pages; a former address of a state still leads there."""
    place = f"{url}/jobs/{job}/destinations"
    failed = _get(f"{place}?state=failed")[1]
    assert failed.count("<tr>") == 2
    assert "Nice, France" in failed
    partial = stack.status(job)["partial"]
    assert f'<span class="quiet count">{partial}</span>' in _get(f"{place}?state=partial&sort=-quality")[1]
    assert "1 of 16 steps" in _get(f"{place}?state=partial")[1]
    assert _get(f"{place}?state=done")[1].count('class="tag complete"') == 50 - max(0, 50 - (60 - partial - 1))
    second = _get(f"{place}?page=1")[1]
    assert (second.count("<tr>"), 'aria-current="page">2<' in second) == (11, True)
    assert _get(f"{place}?page=999999999999&sort=nonsense&state=running&q=%00")[0] == 200
    assert "No destination is known to be under way." in _get(f"{place}?state=running")[1]
    until("the download", lambda: _get(f"{url}/jobs/{job}/results.csv")[1].startswith("destination,"))
