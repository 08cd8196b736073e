"""What can be done to a job from its page: by whom, from where, and what comes of it."""

import asyncio
import http.client
import re
from base64 import b64encode
from dataclasses import dataclass, field
from urllib.parse import urlencode

import pytest
from redis import Redis

from tasks import keys
from tests.e2e.conftest import Engine, until
from tests.e2e.test_dashboard import _dashboard
from tests.support.browser import page

LOGIN = "me:secret"
AUTHORIZATION = f"Basic {b64encode(LOGIN.encode()).decode()}"


@dataclass
class Visitor:
    """A browser with a password, as far as requests go."""

    url: str
    cookie: str = ""
    token: str = ""
    headers: dict[str, str] = field(default_factory=lambda: {"Authorization": AUTHORIZATION})

    def ask(self, method: str, path: str, body: dict[str, str] | None = None, **more: str) -> tuple[int, str, str]:
        """Status, the place that is led to, and the text."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=180)
        headers = self.headers | {name.replace("_", "-"): value for name, value in more.items()}
        if self.cookie:
            headers["Cookie"] = self.cookie
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            connection.request(method, path, urlencode(body) if body is not None else None, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            if said := answer.headers["Set-Cookie"]:
                self.cookie = said.partition(";")[0]
            return answer.status, answer.headers["Location"] or "", text
        finally:
            connection.close()

    def look(self, job: str) -> str:
        """A job's page; its token is kept."""
        status, _, text = self.ask("GET", f"/jobs/{job}")
        assert status == 200, text
        found = re.search(r'name="_xsrf" value="([^"]+)"', text)
        self.token = found[1] if found else ""
        return text

    def do(self, job: str, **body: str) -> tuple[int, str, str]:
        return self.ask("POST", f"/jobs/{job}/do", {"_xsrf": self.token, **body}, Sec_Fetch_Site="same-origin")


def _file(count: int) -> str:
    return "".join(f"Town {number}, Utopia\n" for number in range(count))


def test_who_is_logged_in_pauses_resumes_cancels_and_retries_and_the_log_says_who(stack: Engine) -> None:
    visitor = Visitor(_dashboard(stack, THEMES_DASHBOARD__BASIC_AUTH=LOGIN))
    job = stack.run("enqueue", "-", stdin=_file(6)).stdout.strip()
    assert "Pause</button>" in visitor.look(job)
    # A form of another site sends the password and the cookie, and has no token.
    for body in ({}, {"_xsrf": ""}, {"_xsrf": "2|0000|0000|1"}):
        assert visitor.ask("POST", f"/jobs/{job}/do", {"act": "pause", **body})[0] == 403, body
    token = {"act": "pause", "_xsrf": visitor.token}
    for said in ({"Sec_Fetch_Site": "cross-site"}, {"Origin": "http://evil.example"}):
        assert visitor.ask("POST", f"/jobs/{job}/do", token, **said)[0] == 403, said
    assert Visitor(visitor.url, headers={}).ask("POST", f"/jobs/{job}/do", token)[0] == 401
    assert visitor.do(job, act="explode")[0] == 400
    assert stack.status(job)["paused"] is None
    assert not stack.logged("dashboard", "user_acted")

    assert visitor.do(job, act="pause")[:2] == (303, f"/jobs/{job}")
    assert stack.status(job)["paused"] == "user"
    assert "Paused: 0 of 6 finished." in visitor.look(job)
    assert visitor.do(job, act="retry")[0] == 409, "it is paused"
    stack.ask_sandbox("/faults", ["400=1,match=Town 3", "400=1,match=give the price level"])
    assert visitor.do(job, act="resume")[0] == 303
    stack.themes("w", "worker", "--name", "w")
    until("the job to end", lambda: stack.status(job)["state"] == "done")
    ended = stack.status(job)
    assert (ended["done"], ended["partial"], ended["failed"]) == (5, 5, 1)
    text = visitor.look(job)
    assert "Retry 1 failed, 5 partial</button>" in text
    assert f"themes retry {job} --only BadRequestError --partial" in text
    stack.ask_sandbox("/faults", [])
    assert visitor.do(job, act="retry", only="NoSuchError")[:2] == (303, f"/jobs/{job}?asked=0")
    status, place, _ = visitor.do(job, act="retry", only="BadRequestError", partial="1")
    assert (status, place) == (303, f"/jobs/{job}?asked=6")
    until("all to be complete", lambda: stack.status(job).items() >= {"done": 6, "partial": 0, "failed": 0}.items())
    assert "6 asked again." in visitor.ask("GET", place)[2]

    other = stack.run("enqueue", "-", stdin=_file(500)).stdout.strip()
    visitor.look(other)
    assert visitor.do(other, act="cancel")[0] == 303
    assert stack.status(other)["state"] == "cancelled"
    assert visitor.do("nobody", act="cancel")[0] == 404
    acts = stack.logged("dashboard", "user_acted")
    assert [(line["act"], line["job_id"], line["user"]) for line in acts] == [
        ("pause", job, "me"), ("retry", job, "me"), ("resume", job, "me"), ("retry", job, "me"), ("retry", job, "me"),
        ("cancel", other, "me"), ("cancel", "nobody", "me"),
    ]  # fmt: skip
    assert {line["address"] for line in acts} == {"127.0.0.1"}
    assert "secret" not in stack.log("dashboard")


def test_with_show_answers_who_is_logged_in_reads_what_could_not_be_used(stack: Engine) -> None:
    stack.ask_sandbox("/faults", ["invalid=1,match=Kyoto"])
    on = {"THEMES_DASHBOARD__SHOW_ANSWERS": "true"}
    stack.themes("w", "worker", "--name", "w", **on)
    job = stack.run("enqueue", "-", "--wait", stdin="Oslo, Norway\nKyoto <b>old</b>, Japan\n").stdout.strip()
    visitor = Visitor(_dashboard(stack, THEMES_DASHBOARD__BASIC_AUTH=LOGIN, **on))
    assert f"/jobs/{job}/answers" in visitor.look(job)
    status, _, text = visitor.ask("GET", f"/jobs/{job}/answers")
    assert status == 200
    assert "not JSON, also when asked again" in text
    assert text.count("<pre") == 2 * text.count("<article")
    assert text.count("<article") == 5, "one of each stage that finds themes"
    assert "Kyoto &lt;b&gt;old" in text, "the prompt"
    assert "<b>" not in text
    assert "<script>" not in text
    assert "Oslo" not in text
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        assert 0 < redis.ttl(keys.answers(job)) <= keys.KEEP_SECONDS
    assert Visitor(visitor.url, headers={}).ask("GET", f"/jobs/{job}/answers")[0] == 401
    stack.end("dashboard")
    # Neither without the login nor without the setting.
    assert Visitor(_dashboard(stack, **on), headers={}).ask("GET", f"/jobs/{job}/answers")[0] == 403
    stack.end("dashboard")
    closed = Visitor(_dashboard(stack, THEMES_DASHBOARD__BASIC_AUTH=LOGIN))
    assert closed.ask("GET", f"/jobs/{job}/answers")[0] == 403
    assert f"/jobs/{job}/answers" not in closed.look(job)


@pytest.mark.browser
async def test_without_a_login_the_page_has_commands_and_with_one_buttons(stack: Engine, chromium: str) -> None:
    later = asyncio.to_thread
    job = (await later(lambda: stack.run("enqueue", "-", stdin=_file(4)))).stdout.strip()
    url = await later(_dashboard, stack)
    async with page(chromium) as tab:
        await tab.open(f"{url}/jobs/{job}")
        assert await tab.value("document.querySelectorAll('#acts form').length") == 0
        await tab.value("document.querySelector('#acts summary').click()")
        assert f"themes pause {job}" in await tab.text()
        await tab.value("document.querySelector('#acts [data-copy]').click()")
        await tab.until("['Copied', 'Selected'].includes(document.querySelector('#acts [data-copy]').textContent)")
        assert (await tab.value("getSelection().toString().trim()")) == f"themes pause {job}"
        await later(lambda: stack.end("dashboard"))
        url = await later(lambda: _dashboard(stack, THEMES_DASHBOARD__BASIC_AUTH=LOGIN))
        await tab.open("about:blank#")
        tab.errors.clear()
        await tab.call("Network.enable")
        await tab.call("Network.setExtraHTTPHeaders", headers={"Authorization": AUTHORIZATION})
        await tab.open(f"{url}/jobs/{job}")
        await tab.value("[...document.querySelectorAll('#acts button')].find(b => b.textContent === 'Pause').click()")
        await tab.until("document.getElementById('state')?.textContent === 'paused'")
        await tab.until("[...document.querySelectorAll('#acts button')].some(b => b.textContent === 'Resume')")
        assert (await later(stack.status, job))["paused"] == "user"
        assert not tab.errors
