"""The LLM page and every page of Flower's as a person opens them: numbers are compared with what is stored."""

import asyncio
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from config.settings import load
from tasks import keys
from tests.e2e.conftest import Engine, until
from tests.e2e.test_dashboard import _dashboard, _get
from tests.support.browser import Page, page

#: Addresses of all pages; the last two are filled in.
PAGES = ("/", "/workers", "/tasks", "/broker", "/jobs", "/llm")


async def _later(what: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(what, *arguments)


def _json(url: str) -> Any:
    status, text = _get(url)
    assert status == 200, url
    return msgspec.json.decode(text)


def _worker_name(engine: Engine) -> str:
    with Redis.from_url(engine.env["REDIS_URL"]) as redis:
        return redis.zrange(keys.WORKERS, 0, -1)[0].decode()


def _task_id(url: str) -> str:
    columns = "&".join(f"columns[{n}][data]={name}" for n, name in enumerate(("uuid", "args", "state")))
    found = _json(
        f"{url}/tasks/datatable?draw=1&start=0&length=1&search[value]=&order[0][column]=0&order[0][dir]=asc&{columns}"
    )
    return str(found["data"][0]["uuid"])


@pytest.mark.browser
async def test_every_page_works_under_its_content_security_policy_and_shows_what_is_stored(
    stack: Engine, chromium: str, tmp_path: Path
) -> None:
    url = await _later(_dashboard, stack)
    async with page(chromium) as tab:
        await tab.open(f"{url}/llm")
        text = await tab.text()
        assert "No worker is running" in text
        assert "Nothing was measured in the last hour" in text
        assert "0.0/s" not in text, "what is not measured is not zero"
        stack.themes("w", "worker", "--name", "w")
        names = "Kyoto, Japan\n" + "\n".join(f"Town {number}, Utopia" for number in range(30))
        said = await _later(lambda: stack.run("enqueue", "-", "--wait", stdin=names))
        assert said.returncode == 0, said.stderr
        job = said.stdout.strip()
        # It keeps itself up to date: nothing is loaded again.
        await tab.until("document.querySelectorAll('#workers tbody tr').length === 1")
        await tab.until("document.querySelectorAll('#steps tbody tr').length >= 5")
        status = await _later(stack.status, job)
        calls = status["llm_calls"]
        await tab.until(f"document.getElementById('total-calls')?.textContent === '{calls:,}'")
        await tab.until("document.querySelector('#endpoints .tag')?.textContent === 'closed'")
        tokens = status["prompt_tokens"] + status["completion_tokens"]
        assert await tab.value("document.getElementById('total-tokens').textContent") == f"{tokens:,}"
        assert await tab.value("document.getElementById('total-ok').textContent") == f"{status['done']:,}"
        await _charts_are_read(tab)
        await _every_page_is_clean(tab, url, stack, tmp_path)
        await _it_fits(tab, url)
    assert "Traceback" not in stack.log("dashboard")


async def _charts_are_read(tab: Page) -> None:
    """One place of the clock at a time, in all charts, by pointer and by key."""
    await tab.until("document.querySelectorAll('#charts [data-chart]').length === 3")
    await tab.value("document.getElementById('charts').scrollIntoView()")
    box = await tab.value("document.querySelector('#chart-calls svg').getBoundingClientRect().toJSON()")
    await tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=box["right"] - 1, y=box["top"] + 40)
    clocks = "new Set([...document.querySelectorAll('#charts output')].map(o => o.textContent))"
    await tab.until(f"{clocks}.size === 1 && !{clocks}.has('')")
    first = await tab.value("document.querySelector('#charts output').textContent")
    await tab.value("document.getElementById('chart-calls').focus()")
    await tab.press("ArrowLeft")
    await tab.until(f"document.querySelector('#charts output').textContent !== {first!r}")
    await tab.value("document.activeElement.blur()")
    await tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    await tab.until(f"{clocks}.has('')")
    steps = "[...document.querySelectorAll('.funnel li')].map(step => step.id.slice(5)).join(' ')"
    assert await tab.value(steps) == "queue lanes rate connections llm save"
    assert await tab.value("document.querySelectorAll('h1 + #verdict[data-live]').length") == 1


async def _every_page_is_clean(tab: Page, url: str, stack: Engine, folder: Path) -> None:
    await _later(until, "the task to be known", lambda: "flower_events_total{" in _get(f"{url}/metrics")[1])
    worker, task = await _later(_worker_name, stack), await _later(_task_id, url)
    await tab.size(1200, 900)
    for place in (*PAGES, f"/worker/{worker}", f"/task/{task}"):
        tab.errors.clear()
        await tab.open(url + place)
        await asyncio.sleep(0.5)
        assert len(await tab.text()) > 100, place
        assert not tab.errors, (place, tab.errors)
        links = await tab.value("[...document.querySelectorAll('a')].map(a => a.textContent.trim())")
        assert {"Jobs", "LLM"} <= set(links), place
        await tab.picture(folder / f"{place.strip('/').replace('/', '-') or 'main'}.png")
    await tab.open(f"{url}/tasks")
    await tab.until("document.body.innerText.includes('SUCCESS')")
    await tab.open(f"{url}/workers")
    await tab.until(f"document.body.innerText.includes('{worker}')")
    assert not tab.errors


async def _it_fits(tab: Page, url: str) -> None:
    await tab.open(f"{url}/llm")
    light = await tab.value("getComputedStyle(document.body).backgroundColor")
    await tab.dark(on=True)
    assert await tab.value("getComputedStyle(document.body).backgroundColor") != light
    await tab.size(375, 800)
    await tab.open(f"{url}/llm")
    assert await tab.value("document.documentElement.scrollWidth") <= 375
    assert await tab.value("document.querySelectorAll('h1').length") == 1
    unnamed = "[...document.querySelectorAll('svg[role=img]')].filter(s => !s.getAttribute('aria-label')).length"
    assert await tab.value(unnamed) == 0
    assert not tab.errors


def test_with_profiling_off_it_says_so_instead_of_zeros(stack: Engine) -> None:
    url = _dashboard(stack)
    off = {"THEMES_PERFORMANCE_OPTIMIZATION__ENABLE_PERFORMANCE_PROFILING": "false"}
    stack.themes("w", "worker", "--name", "w", **off)
    assert stack.run("enqueue", "-", "--wait", stdin="Kyoto, Japan\n").returncode == 0
    said = until("the totals", lambda: (found := _json(f"{url}/llm.json"))["totals"] and found)
    assert "Profiling is off" in said["notices"][0]["text"]
    figures = {each["id"]: each["value"] for each in said["figures"]}
    assert {figures[name] for name in ("calls", "tokens", "hit-rate")} == {"\u2013"}
    assert not _steps(said) & {"llm.call", "lane.wait", "cache.get"}
    assert said["workers"][0]["cpu"] == "\u2013"
    text = _get(f"{url}/metrics")[1]
    assert "themes_llm_call_duration_seconds_count" not in text
    assert "themes_llm_calls_total 16.0" in text


def test_what_workers_say_is_only_text(stack: Engine) -> None:
    url = _dashboard(stack)
    nasty = "<img src=x onerror=alert(1)>"
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        pool = {"routes": {f"{nasty}/{nasty}": {"model": nasty, "circuit": nasty, "error": nasty}}}
        report = {"lanes": 1, "pool": msgspec.json.encode(pool), "profile": b"no json", "waiting_for": nasty}
        redis.hset(keys.worker(nasty), mapping=report)
        redis.expire(keys.worker(nasty), 60)
        redis.zadd(keys.WORKERS, {nasty: 1})
    with urllib.request.urlopen(f"{url}/llm", timeout=180) as answer:  # noqa: S310
        text = answer.read().decode()
    assert nasty not in text
    assert text.count("&lt;img src=x") >= 3
    assert _get(f"{url}/metrics")[0] == 200


def _steps(said: Any) -> set[str]:
    return {each["name"] for each in said["steps"] + said["more_steps"]}


def test_a_state_that_is_in_redis_survives_a_restart(stack: Engine) -> None:
    url = _dashboard(stack)
    settings = load(env={"THEMES_STATE_DIR": stack.env["THEMES_STATE_DIR"], "REDIS_URL": stack.env["REDIS_URL"]})
    assert settings
    stack.themes("w", "worker", "--name", "w")
    assert stack.run("enqueue", "-", "--wait", stdin="Kyoto, Japan\n").returncode == 0

    # Totals come from the database, the cache's counts from the worker, once a second.
    def whole() -> dict[str, Any] | None:
        found: dict[str, Any] = _json(f"{url}/llm.json")
        return found if found["totals"] and [row["asked"] for row in found["cache"]] == ["16", "16", "16"] else None

    first = until("totals and counts", whole)
    stack.end("dashboard", kill=True)
    again = _json(f"{_dashboard(stack)}/llm.json")
    assert again["totals"] == first["totals"]
    assert again["cache"] == first["cache"]
    assert _steps(first) <= _steps(again)
