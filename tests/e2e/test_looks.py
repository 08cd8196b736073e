"""How every page looks, in one browser: at three widths, light and dark, with long names, and by keyboard."""

import asyncio
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Engine, until
from tests.e2e.test_dashboard import _dashboard, _get
from tests.support.browser import Page, page
from tests.support.looks import WIDTHS, broken_words, overflow, violations

LONG = "Llanfair" + "pwll" * 40
PLACES = f"Kyoto, Japan\n{LONG}, Wales\nمدينة الأحلام 🎉 <b>x</b>, Utopia\nQuerétaro de Arteaga, Mexico\n"
#: Flower's own code is not ours to mend.
FLOWERS = ("/workers", "/tasks", "/broker")


async def _later(what: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(what, *arguments)


def _work(stack: Engine) -> str:
    """A job of which one destination is partial and one fails."""
    stack.sandbox("--latency", "20ms", "--fault", "400=1,match=Quer", "--fault", "invalid=1,match=adventure")
    stack.themes("w", "worker", "--name", "w")
    said = stack.run("enqueue", "-", "--wait", "--name", f"Autumn {LONG}", stdin=PLACES)
    return said.stdout.strip()


@pytest.mark.browser
async def test_every_page_fits_breaks_no_word_and_is_clean_for_axe_at_three_widths_in_light_and_dark(
    stack: Engine, chromium: str, tmp_path: Path
) -> None:
    url = await _later(_dashboard, stack)
    job = await _later(_work, stack)
    report = tmp_path / "report.html"
    assert (await _later(lambda: stack.run("report", job, "-o", str(report)))).returncode == 0
    async with page(chromium) as tab:
        places = [
            f"{url}/jobs", f"{url}/jobs/{job}", f"{url}/jobs/{job}/destinations", f"{url}/llm", report.as_uri(),
            *(url + place for place in FLOWERS), *[f"{url}{place}" for place in await _profiles(tab, url, job)],
        ]  # fmt: skip
        await _later(until, "Flower to know the task", lambda: "flower_events_total{" in _get(f"{url}/metrics")[1])
        found: list[Any] = []
        for place in places:
            for width in WIDTHS:
                await tab.size(width, 900)
                found += [(place, width, said) for said in await _faults(tab, place)]
        assert not found, "\n".join(map(str, found))
        await _keys_work(tab, url, job)
        await _the_chosen_theme_is_everywhere(tab, url)
        await _an_unknown_page_is_ours(tab, url)


async def _profiles(tab: Page, url: str, job: str) -> list[str]:
    await tab.open(f"{url}/jobs/{job}/destinations")
    links = "[...document.querySelectorAll('main tbody a')].map(a => new URL(a.href).pathname)"
    found: list[str] = await tab.value(links)
    assert len(found) >= 2
    return found[:2]


async def _faults(tab: Page, place: str) -> list[str]:
    """What is wrong with a page at this width, in light and dark."""
    tab.errors.clear()
    await tab.open(place)
    found = [f"wider than the window by {more} px" for more in [await overflow(tab)] if more > 0]
    found += [f"broken: {word}" for word in await broken_words(tab)]
    for dark in (False, True):
        await tab.dark(on=dark)
        if not place.endswith(FLOWERS):
            found += await violations(tab)
    return found + tab.errors


async def _keys_work(tab: Page, url: str, job: str) -> None:
    await tab.open(f"{url}/jobs/{job}/destinations")
    await tab.type("j")
    first = await tab.value("document.activeElement.href")
    assert first
    await tab.type("j")
    assert await tab.value("document.activeElement.href") != first
    await tab.type("k")
    assert await tab.value("document.activeElement.href") == first
    await tab.type("?")
    assert await tab.value("document.getElementById('keys').open")
    await tab.value("document.getElementById('keys').close()")
    await tab.type("/")
    assert await tab.value("document.activeElement.type") == "search"
    await tab.value("document.activeElement.value = ''")
    for key in "j/?":
        await tab.type(key)
    assert await tab.value("document.activeElement.value") == "j/?", "nothing is captured while one types"
    assert not await tab.value("document.getElementById('keys').open")


async def _the_chosen_theme_is_everywhere(tab: Page, url: str) -> None:
    await tab.dark(on=False)
    await tab.open(f"{url}/jobs")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = await tab.value(colour)
    await tab.value("document.querySelector('[data-bs-theme-value=dark]').click()")
    dark = await tab.value(colour)
    assert dark != light
    for place in ("/tasks", "/llm"):
        await tab.open(url + place)
        assert await tab.value(colour) == dark, place
        headings = "[...document.querySelectorAll('header.bar nav a')].map(a => a.textContent)"
        assert await tab.value(headings) == ["themes", "Jobs", "LLM", "Workers", "Tasks", "Broker"], place
    await tab.value("document.querySelector('[data-bs-theme-value=system]').click()")
    assert await tab.value(colour) == light


async def _an_unknown_page_is_ours(tab: Page, url: str) -> None:
    for place in ("/nowhere", "/task/nobody-s", "/jobs/x/y/z"):
        await tab.open(url + place)
        assert await tab.value("document.querySelector('h1').textContent") == "There is no such page", place
        assert await violations(tab) == []
    await tab.open(url)
    assert await tab.value("location.pathname") == "/jobs"


def test_who_gives_no_password_reads_why_on_a_page_that_needs_nothing_else(stack: Engine) -> None:
    url = _dashboard(stack, THEMES_DASHBOARD__BASIC_AUTH="me:secret")
    for place in ("/jobs", "/tasks", "/static/js/flower.js"):
        request = urllib.request.Request(url + place, headers={"Accept": "text/html"})  # noqa: S310
        with pytest.raises(urllib.error.HTTPError, match="401") as caught:
            urllib.request.urlopen(request, timeout=180)  # noqa: S310
        with caught.value as answer:
            text, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
            assert answer.headers["WWW-Authenticate"].startswith("Basic")
        assert "<h1>A login is needed</h1>" in text
        (nonce,) = re.findall(r'<style nonce="([^"]+)">', text)
        assert f"style-src 'nonce-{nonce}'" in policy
        assert "header.bar {" in text
        assert "<script" not in text
        assert '<link rel="stylesheet"' not in text
    assert _get(f"{url}/jobs")[0] == 401
