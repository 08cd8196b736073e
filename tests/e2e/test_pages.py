"""The job pages as people use them: real processes, a real browser."""

import asyncio
import signal
import sqlite3
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.e2e.conftest import Engine, until
from tests.e2e.test_dashboard import _dashboard, _get
from tests.support.browser import Page, page

NASTY = "<script>window.broken=1</script>\"onmouseover='window.broken=1' & <b>bold"


async def _later(what: Any, *arguments: Any) -> Any:
    return await asyncio.to_thread(what, *arguments)


def _no_errors_but(tab: Page, *expected: str) -> None:
    others = [error for error in tab.errors if not any(text in error for text in expected)]
    assert not others


@pytest.mark.browser
async def test_a_person_watches_a_job_loses_the_connection_and_reads_a_profile(
    stack: Engine, chromium: str, tmp_path: Path
) -> None:
    url = await _later(_dashboard, stack)
    port = url.rpartition(":")[2]
    names = "\n".join(f"Town {number}, Utopia" for number in range(60))
    async with page(chromium) as tab:
        await tab.open(f"{url}/jobs")
        assert "There is no job yet" in await tab.text()
        said = await _later(lambda: stack.run("enqueue", "-", "--name", NASTY, stdin=f"Kyoto, Japan\n{NASTY}\n{names}"))
        job = said.stdout.strip()
        await tab.open(f"{url}/jobs/{job}")
        assert await tab.value("document.getElementById('ended').textContent") == "0"
        stack.themes("w", "worker", "--name", "w", THEMES_PERFORMANCE_OPTIMIZATION__LLM_CONNECTION_POOL_SIZE="5")
        # Rows arrive by themselves.
        await tab.until("document.querySelectorAll('#rows tr').length >= 5")
        await tab.until("document.querySelectorAll('#running tr').length >= 1")
        assert await tab.value("document.getElementById('state').textContent") == "running"
        # The dashboard dies, and comes back.
        await _later(lambda: stack.end("dashboard", kill=True))
        await tab.until("!document.getElementById('lost').hidden")
        await _later(lambda: stack.themes("dashboard", "dashboard", "--port", port))
        await tab.until("document.getElementById('lost').hidden")
        await tab.until("document.getElementById('state').textContent === 'done'")
        await tab.until("document.getElementById('ended').textContent === '62'")
        listed = "[...document.querySelectorAll('#rows tr')].map(row => row.dataset.destination)"
        shown = await tab.value(listed)
        assert len(shown) == len(set(shown)) == 50, "the last fifty, none twice"
        assert await tab.value("document.querySelectorAll('#chart path').length") == 2
        _no_errors_but(tab, "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED", "ERR_CONNECTION_RESET", "ERR_EMPTY")
        tab.errors.clear()
        await _a_profile_is_read(tab, url, job)
        await _names_are_only_text(tab, url, job)
        await _it_fits_a_phone_in_the_dark(tab, url, job, tmp_path)
        _no_errors_but(tab)
    assert "Traceback" not in stack.log("dashboard")


async def _a_profile_is_read(tab: Page, url: str, job: str) -> None:
    """Through the list of destinations, by keyboard."""
    await tab.open(f"{url}/jobs/{job}/destinations")
    await tab.value("document.getElementById('q').value = 'KYOTO'")
    await tab.value("document.getElementById('q').focus()")
    await tab.press("Enter")
    await tab.until("location.search.includes('KYOTO') && document.readyState === 'complete'")
    assert await tab.value("document.querySelectorAll('tbody tr').length") == 1
    await tab.value("document.querySelector('tbody a').focus()")
    await tab.press("Enter")
    await tab.until(
        "document.querySelector('h1')?.textContent.includes('Kyoto, Japan') && document.readyState === 'complete'"
    )
    themes = await tab.value("document.querySelectorAll('.theme').length")
    assert themes >= 10
    assert await tab.value("document.querySelectorAll('.theme .months').length") == themes
    assert await tab.value("document.querySelector('.theme .months').children.length") == 12
    assert await tab.value("document.querySelectorAll('.months .peak').length") >= themes
    text = await tab.text()
    for word in ("Food", "Culture", "stand-in, not a real model", "At a glance", "Generation log", "confidence"):
        assert word in text
    assert "discover.food" not in text, "the log is closed"
    await tab.value("document.querySelector('#log > summary').click()")
    stages = "[...document.querySelectorAll('#log tbody tr')].map(row => row.cells[0].textContent.split('.')[0])"
    assert list(dict.fromkeys(await tab.value(stages))) == ["discover", "analyse", "enhance", "assess"]
    assert await tab.value("document.querySelectorAll('#log tfoot tr').length") == 1
    assert await tab.value("document.querySelectorAll('.months.all li').length") == 12
    said = await tab.value("fetch(document.getElementById('json').href).then(answer => answer.json())")
    assert (said["name"], len(said["themes"])) == ("Kyoto", themes)
    await tab.value("document.querySelector('a[rel=prev]')?.click() ?? document.querySelector('a[rel=next]').click()")
    await tab.until(
        "!document.querySelector('h1')?.textContent.includes('Kyoto') && document.readyState === 'complete'"
    )
    assert await tab.value("document.querySelectorAll('.theme').length") >= 10


async def _names_are_only_text(tab: Page, url: str, job: str) -> None:
    for place in ("/jobs", f"/jobs/{job}", f"/jobs/{job}/destinations?q=script"):
        await tab.open(url + place)
        assert NASTY in await tab.text()
        assert await tab.value("window.broken") is None
        assert await tab.value("document.querySelectorAll('main b, main [onmouseover]').length") == 0
    await tab.open(f"{url}/jobs/{job}/destinations?q={'%3Cscript%3E'}")
    await tab.value("document.querySelector('tbody a').click()")
    await tab.until("document.querySelector('h1')?.textContent.includes('window.broken')")
    assert await tab.value("window.broken") is None


async def _it_fits_a_phone_in_the_dark(tab: Page, url: str, job: str, folder: Path) -> None:
    light = await tab.value("getComputedStyle(document.body).backgroundColor")
    await tab.dark(on=True)
    assert await tab.value("getComputedStyle(document.body).backgroundColor") != light
    await tab.size(375, 800)
    profile = await tab.value("location.href")
    for place in (f"{url}/jobs", f"{url}/jobs/{job}", f"{url}/jobs/{job}/destinations", profile):
        await tab.open(place)
        assert await tab.value("document.documentElement.scrollWidth") <= 375, place
        assert await tab.value("document.querySelectorAll('h1').length") == 1
    await tab.picture(folder / "phone.png")
    assert (folder / "phone.png").stat().st_size > 10_000


def test_pages_say_what_is_wrong_and_what_to_do(engine: Engine) -> None:
    engine.themes("up", "up", "--workers", "1", "--sandbox", "--no-dashboard")
    until("the stack", lambda: "ready" in engine.log("up"))
    url = _dashboard(engine)
    assert "no job" in _page(f"{url}/jobs/20200101-000000-abcdef", 404)
    job = engine.run("enqueue", "-", "--wait", stdin="Kyoto, Japan\n").stdout.strip()
    assert "has none for nobody" in _page(f"{url}/jobs/{job}/destinations/nobody", 404)
    assert "Kyoto" in _page(f"{url}/jobs/{job}", 200)
    assert job in _page(f"{url}/jobs/{job[-6:]}", 200), "the id that `themes status` prints leads there"
    assert _page(f"{url}/jobs/{job}/destinations?page=99&state=x&q=%00%22", 200)
    assert msgspec.json.decode(_page(f"{url}/jobs.json", 200))[0]["job_id"] == job
    counts = msgspec.json.decode(_page(f"{url}/jobs/{job}/status.json", 200))
    assert (counts["tag"], counts["is_final"], counts["counts"]["done"]) == ("done", True, 1)
    with urllib.request.urlopen(f"{url}/jobs/{job}", timeout=180) as answer:  # noqa: S310
        headers = answer.headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert 'href="/jobs">Jobs</a>' in _page(f"{url}/workers", 200), "Flower leads to our pages"
    # Redis forgets, the database does not.
    engine.run("cache", "clear", "--yes")
    _forget(engine, job)
    told = _page(f"{url}/jobs/{job}", 200)
    assert "Redis no longer knows this job" in told
    database = Path(engine.env["THEMES_STATE_DIR"]) / "themes.db"
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM profiles").fetchone() == (1,)
    connection.close()
    engine.processes["up"].send_signal(signal.SIGTERM)
    until("the stack to end", lambda: engine.processes["up"].poll() is not None)
    assert "Redis does not answer" in _page(f"{url}/jobs", 503)
    assert "Traceback" not in engine.log("dashboard")


def test_without_a_database_and_with_a_password(stack: Engine) -> None:
    url = _dashboard(
        stack,
        THEMES_DASHBOARD__BASIC_AUTH="me:secret",
        THEMES_DASHBOARD__MAX_WATCHERS="1",
        DATABASE_URL="sqlite+aiosqlite:////no/such.db",
    )
    for place in ("/jobs", "/jobs.json", "/jobs/x", "/jobs/x/events", "/jobs/x/destinations", "/jobs/assets/job.js"):
        assert _get(f"{url}{place}")[0] == 401, place
    assert _get(f"{url}/jobs", "me:secret")[0] == 200
    assert _get(f"{url}/jobs/assets/themes.css", "me:secret")[0] == 200
    assert _get(f"{url}/jobs/x/events", "me:secret")[0] == 404
    assert _get(f"{url}/jobs/x/destinations", "me:secret")[0] == 503
    job = stack.run("enqueue", "-", stdin="Kyoto, Japan\n").stdout.strip()
    request = urllib.request.Request(f"{url}/jobs/{job}/events")  # noqa: S310
    request.add_header("Authorization", f"Basic {b64encode(b'me:secret').decode()}")
    with urllib.request.urlopen(request, timeout=180) as one:  # noqa: S310
        assert one.readline().startswith(b"retry:")
        assert _get(f"{url}/jobs/{job}/events", "me:secret")[0] == 503, "dashboard.max_watchers"
    assert "Traceback" not in stack.log("dashboard")


def _page(url: str, status: int) -> str:
    try:
        with urllib.request.urlopen(url, timeout=180) as answer:  # noqa: S310
            found, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            found, text = exc.code, exc.read().decode()
    assert found == status, text
    return str(text)


def _forget(engine: Engine, job: str) -> None:
    from redis import Redis

    from config.settings import load
    from tasks.connection import locate

    url = locate(load(env={"THEMES_STATE_DIR": engine.env["THEMES_STATE_DIR"]}))
    with Redis.from_url(url) as redis:
        found = list(redis.scan_iter(f"themes:job:{job}*"))
        redis.delete(*found)
