"""The dashboard is closed to others, however it is started and whatever it is told."""

import http.client
import socket
import stat
import urllib.request
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.conftest import Engine, until
from tests.e2e.test_dashboard import _free_port, _get
from tests.support.forks import Forks

#: One address of each kind that Flower and we answer.
READ = (
    "/", "/workers", "/worker/x", "/tasks", "/tasks/datatable", "/task/x", "/broker", "/metrics", "/healthcheck",
    "/static/js/flower.js", "/static/nothing", "/api/workers", "/api/tasks", "/api/task/types", "/api/queues/length",
    "/api/task/info/x", "/api/task/result/x", "/nothing", "/jobs", "/jobs.json", "/jobs/x", "/jobs/x/status.json",
    "/jobs/x/events",
    "/jobs/x/destinations", "/jobs/x/destinations/y", "/jobs/x/results.csv", "/jobs/x/results.jsonl",
    "/jobs/assets/llm.js", "/llm", "/llm.json",
)  # fmt: skip
CHANGE = (
    "/api/worker/shutdown/w", "/api/worker/pool/grow/w", "/api/worker/queue/cancel-consumer/w",
    "/api/task/send-task/x", "/api/task/async-apply/x", "/api/task/apply/x", "/api/task/abort/x", "/api/task/revoke/x",
    "/api/task/timeout/x", "/api/task/rate-limit/x", "/jobs/x/do",
)  # fmt: skip
HEADERS = ("X-Frame-Options", "X-Content-Type-Options", "Referrer-Policy", "Content-Security-Policy")


def _ask(port: int, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=180)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read().decode("utf-8", "replace")
    finally:
        connection.close()


def _start(engine: Engine, way: str, *options: str, **env: str) -> int:
    """Start the dashboard in one of its ways; returns its port."""
    port = _free_port()
    if way == "themes":
        engine.themes("dashboard", "dashboard", "--port", str(port), *options, **env)
    else:
        engine.celery("dashboard", "flower", f"--port={port}", *options, **env)
    until("the dashboard to answer", lambda: _get(f"http://127.0.0.1:{port}/healthcheck")[0])
    return port


@pytest.mark.parametrize("way", ["themes", "celery"])
def test_nothing_answers_without_the_password_and_every_answer_is_guarded(way: str, stack: Engine) -> None:
    port = _start(stack, way, THEMES_DASHBOARD__BASIC_AUTH="me:secret", FLOWER_UNAUTHENTICATED_API="true")
    right = f"Basic {b64encode(b'me:secret').decode()}"
    wrong = f"Basic {b64encode('mé:secret'.encode()).decode()}"
    for path in (*READ, "/login", "/logout"):
        for attempt in ({}, {"Authorization": wrong}, {"Authorization": "Basic ="}):
            status, headers, text = _ask(port, "GET", path, **attempt)
            assert (status, text) == (401, "401 a password is needed\n"), path
            assert not [name for name in HEADERS if name not in headers], path
        status, headers, _ = _ask(port, "GET", path, Authorization=right)
        assert status not in {401, 403, 500}, path
        assert not [name for name in HEADERS if name not in headers], path
        assert "Access-Control-Allow-Origin" not in headers, path
        assert "unsafe" not in headers["Content-Security-Policy"]
    for path in CHANGE:
        assert _ask(port, "POST", path)[0] == 401, path
        # Not from elsewhere, even by a browser that knows the password.
        for said in (
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
        ):
            assert _ask(port, "POST", path, Authorization=right, **said)[0] == 403, (path, said)
    ours = {"Authorization": right, "Origin": f"http://127.0.0.1:{port}", "Sec_Fetch_Site": "same-origin"}
    assert _ask(port, "POST", "/api/worker/shutdown/nobody", **ours)[0] == 404, "through to Flower"
    assert "Traceback" not in stack.log("dashboard")


def test_a_body_that_is_too_large_is_refused_before_it_is_read_and_a_half_one_is_not_waited_for(stack: Engine) -> None:
    port = _start(stack, "themes", THEMES_DASHBOARD__BASIC_AUTH="me:secret")
    head = f"POST /api/workers HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: "
    with socket.create_connection(("127.0.0.1", port), timeout=180) as large:
        large.sendall(f"{head}95000000\r\n\r\n".encode())
        assert large.recv(1_000).startswith((b"HTTP/1.1 4", b"")), "not a byte of the body was sent"
        assert large.recv(1_000) == b""
    with socket.create_connection(("127.0.0.1", port), timeout=180) as half:
        half.sendall(f"{head}1000\r\n\r\nabc".encode())
        while half.recv(1_000):
            pass


def test_wrong_passwords_are_refused_one_after_the_other_and_right_ones_do_not_wait(stack: Engine) -> None:
    port = _start(stack, "themes", THEMES_DASHBOARD__BASIC_AUTH="me:secret")
    wrong, right = (f"Basic {b64encode(f'me:{word}'.encode()).decode()}" for word in ("wrong", "secret"))
    with ThreadPoolExecutor(8) as guesses:
        asked = [guesses.submit(_ask, port, "GET", "/jobs", Authorization=wrong) for _ in range(16)]
        first = _ask(port, "GET", "/jobs", Authorization=right)[0]
        were_done = sum(one.done() for one in asked)
        assert [one.result()[0] for one in asked] == [401] * 16
    assert first == 200
    assert were_done < 16


def test_a_socket_file_is_its_user_s_alone(stack: Engine, tmp_path: Path) -> None:
    place = tmp_path / "dashboard.sock"
    stack.themes("dashboard", "dashboard", FLOWER_UNIX_SOCKET=str(place))
    until("the socket", place.exists)
    # For a moment it is as the umask has it, which is as narrow.
    assert stat.S_IMODE(place.stat().st_mode) & 0o077 == 0
    until("its mode", lambda: stat.S_IMODE(place.stat().st_mode) == 0o600)


@pytest.mark.parametrize("way", ["themes", "celery"])
def test_without_a_password_nobody_changes_anything_and_only_this_machine_is_answered(way: str, stack: Engine) -> None:
    port = _start(stack, way, FLOWER_UNAUTHENTICATED_API="true")
    for path in CHANGE:
        for headers in ({}, {"Sec_Fetch_Site": "same-origin", "Origin": f"http://127.0.0.1:{port}"}):
            status, _, text = _ask(port, "POST", path, **headers)
            assert (status, "without a login" in text) == (403, True), path
    table = "/tasks/datatable?draw=1&start=0&length=1&search[value]=&order[0][column]=0&order[0][dir]=asc"
    table += "&columns[0][data]=name"
    assert _ask(port, "POST", table)[0] == 200, "Flower's table is asked by POST"
    assert _ask(port, "POST", table, Sec_Fetch_Site="cross-site")[0] == 403
    assert _ask(port, "GET", "/api/workers")[0] == 200, "reading is what the variable opens"
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert _ask(port, "GET", "/jobs", Host=host)[0] == 200, host
    for host in ("evil.example", f"127.0.0.1.evil.example:{port}", "localhost.evil.example", "192.168.1.5", "[::1", ""):
        for path in READ:
            status, headers, text = _ask(port, "GET", path, Host=host)
            assert status in {400, 403}, (host, path)
            assert status == 400 or "names of this machine only" in text
    for path in READ:
        _, headers, _ = _ask(port, "GET", path, Origin="http://evil.example")
        assert "Access-Control-Allow-Origin" not in headers, path
        assert not [name for name in HEADERS if name not in headers], path
    assert _ask(port, "GET", "/llm")[0] == 200
    assert "Traceback" not in stack.log("dashboard")


def _refused(engine: Engine, *options: str, **env: str) -> str:
    said = engine.run_celery("flower", f"--port={_free_port()}", *options, **env)
    assert said.returncode == 2, said.stderr
    assert "Traceback" not in said.stderr
    return said.stderr.strip().splitlines()[-1]


def test_celery_flower_does_not_open_itself_to_others(
    stack: Engine, forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    everyone = "0.0.0.0"  # noqa: S104
    words = f"themes: dashboard.host: {everyone} is reachable by others"
    stack.env["PYTHONPATH"] = str(Path(__file__).parents[2])
    stack.forks = None
    assert _refused(stack, f"--address={everyone}").startswith(words)
    stack.forks = forks
    assert _refused(stack, FLOWER_ADDRESS=everyone).startswith(words)
    assert _refused(
        stack, FLOWER_AUTH_PROVIDER="flower.views.auth.GithubLoginHandler", FLOWER_ADDRESS=everyone
    ).startswith(words)
    assert "expected user:password" in _refused(stack, FLOWER_BASIC_AUTH="", FLOWER_ADDRESS=everyone)
    (tmp_path / "named.py").write_text(f"address = {everyone!r}\n")
    assert _refused(stack, "--conf=named.py").startswith(words)
    (tmp_path / "named.py").write_text("auth = 'me@example.org'\n")
    assert "auth: is set without auth_provider" in _refused(stack, "--conf=named.py")


def test_an_auth_provider_guards_all_pages_and_sends_people_to_it(stack: Engine) -> None:
    provider = {
        "FLOWER_AUTH": "me@example.org",
        "FLOWER_AUTH_PROVIDER": "flower.views.auth.GithubLoginHandler",
        "FLOWER_OAUTH2_KEY": "an-id",
        "FLOWER_OAUTH2_SECRET": "a-secret",
        "FLOWER_OAUTH2_REDIRECT_URI": "http://127.0.0.1/login",
    }
    port = _start(stack, "celery", **provider)
    for path in READ:
        status, headers, _ = _ask(port, "GET", path)
        assert (status, "WWW-Authenticate" in headers) == (401, False), path
    status, headers, _ = _ask(port, "GET", "/jobs", Accept="text/html")
    assert (status, headers["Location"]) == (302, "/login?next=%2Fjobs")
    status, headers, _ = _ask(port, "GET", "/login")
    assert status == 302
    assert headers["Location"].startswith("https://github.com/login/oauth/authorize")
    assert headers["X-Frame-Options"] == "DENY"
    for path in CHANGE:
        assert _ask(port, "POST", path)[0] in {401, 403}, path


def test_no_key_and_no_prompt_is_on_any_page(stack: Engine) -> None:
    key = "sk-canary-1f7d2c"
    prompt = "canary-prompt-text-93b1"
    folder = stack.folder / "prompts"
    import shutil

    import workers.pipeline

    shutil.copytree(Path(workers.pipeline.__file__).parent / "prompts", folder)
    for file in folder.glob("*.md"):
        file.write_text(file.read_text("utf-8") + f"\n{prompt}\n", encoding="utf-8")
    env = {"OPENAI_API_KEY": key, "THEMES_PIPELINE__PROMPTS_DIR": str(folder)}
    stack.env |= env
    port = _start(stack, "themes", FLOWER_UNAUTHENTICATED_API="true")
    stack.themes("w", "worker", "--name", "w")
    job = stack.run("enqueue", "-", "--wait", stdin="Kyoto, Japan\n").stdout.strip()
    url = f"http://127.0.0.1:{port}"
    columns = "&".join(f"columns[{n}][data]={name}" for n, name in enumerate(("uuid", "args", "kwargs", "result")))
    table = f"/tasks/datatable?draw=1&start=0&length=9&search[value]=&order[0][column]=0&order[0][dir]=asc&{columns}"
    listed = until("the task", lambda: "Kyoto" in (text := _get(url + table)[1]) and text)
    task = listed.split('"uuid": "')[1].split('"')[0]
    destination = stack.run("results", job, "--format", "jsonl").stdout.split('"destination_id":"')[1].split('"')[0]
    import socket

    worker = f"w@{socket.gethostname()}"
    places = (
        *READ, table, f"/worker/{worker}", f"/worker/{worker}?refresh=true", f"/task/{task}", f"/api/task/info/{task}",
        "/api/workers?refresh=true", f"/jobs/{job}", f"/jobs/{job}/status.json", f"/jobs/{job}/destinations",
        f"/jobs/{job}/destinations/{destination}",
    )  # fmt: skip
    for place in places:
        _, headers, text = _ask(port, "GET", place)
        assert key not in text + str(headers), place
        assert prompt not in text, place
    with urllib.request.urlopen(f"{url}/jobs/{job}/events", timeout=180) as events:  # noqa: S310
        text = events.read().decode()
    assert "destination.done" in text
    assert key not in text
    assert prompt not in text
    log = stack.log("dashboard") + stack.log("w")
    assert key not in log
    assert prompt not in log
