"""The notices of jobs, by real processes, to a server that a user would write."""

import base64
import hashlib
import hmac
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from redis import Redis

from tasks import keys
from tests.e2e.conftest import Engine, until

KEY = b"what only the two of us know"
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Receiver:
    """A server that checks each signature, and refuses the first `refusals` posts."""

    def __init__(self, refusals: int = 0) -> None:
        self.taken: list[dict[str, Any]] = []
        self.ids: list[str] = []
        self.wrong: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                id_, at = self.headers["webhook-id"], self.headers["webhook-timestamp"]
                digest = hmac.new(KEY, f"{id_}.{at}.{body}".encode(), hashlib.sha256).digest()
                receiver.ids.append(id_)
                if self.headers["webhook-signature"] != f"v1,{base64.b64encode(digest).decode()}":
                    receiver.wrong.append(id_)
                if abs(time.time() - int(at)) > 300:
                    receiver.wrong.append(f"{id_} at {at}")
                is_refused = len(receiver.ids) <= refusals
                if not is_refused:
                    receiver.taken.append(json.loads(body))
                self.send_response(503 if is_refused else 204)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name there
                logging.getLogger(__name__).debug(format, *args)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/themes"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver(refusals=1)
    yield receiver
    receiver.close()


def _with_webhook(stack: Engine, url: str, **more: str) -> None:
    stack.end("consumer")
    stack.env |= {"THEMES_WEBHOOK__URL": url, "THEMES_WEBHOOK__SECRET": SECRET, **more}
    stack.themes("consumer-2", "consumer")


def test_a_job_s_end_and_its_pause_are_posted_signed_until_they_are_taken(stack: Engine, receiver: Receiver) -> None:
    _with_webhook(
        stack, receiver.url, THEMES_WEBHOOK__PRIVATE_HOSTS="127.0.0.1", THEMES_WORK__SWEEP_INTERVAL_SECONDS="0.2"
    )
    paused = stack.run("enqueue", "-", stdin="Kyoto, Japan\nNara, Japan\n").stdout.strip()
    assert stack.run("pause", paused).returncode == 0
    # The first try is refused: the same notice comes again.
    until("the pause", lambda: receiver.taken)
    (notice,) = receiver.taken
    assert (notice["type"], notice["data"]["state"]) == ("job.paused", "paused")
    assert (notice["data"]["job_id"], notice["data"]["paused"], notice["data"]["total"]) == (paused, "user", 2)
    assert receiver.ids[0] == receiver.ids[1]
    stack.themes("worker", "worker", "--name", "w")
    assert stack.run("resume", paused).returncode == 0
    until("the end", lambda: len(receiver.taken) > 1)
    done = receiver.taken[1]
    assert (done["type"], done["data"]["job_id"], done["data"]["state"]) == ("job.done", paused, "done")
    assert (done["data"]["done"], done["data"]["failed"], done["data"]["llm_calls"]) == (2, 0, 32)
    assert not receiver.wrong
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("nothing more to tell", lambda: not redis.exists(keys.WEBHOOKS, keys.WEBHOOKS_DUE))
    assert len(receiver.taken) == 2


def test_a_notice_goes_to_no_private_host_that_is_not_named_and_waits_for_its_server(
    stack: Engine, receiver: Receiver
) -> None:
    _with_webhook(stack, receiver.url)
    stack.themes("worker", "worker", "--name", "w")
    assert stack.run("enqueue", "-", "--wait", stdin="Kyoto, Japan\n").returncode == 0
    until("a try", lambda: stack.logged("consumer-2", "webhook_failed"))
    assert not receiver.ids
    # Stopped, and started again with the host allowed: what was to be told is still known.
    stack.end("consumer-2")
    stack.env["THEMES_WEBHOOK__PRIVATE_HOSTS"] = "127.0.0.1"
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        (notice,) = redis.zrange(keys.WEBHOOKS_DUE, 0, -1)  # type: ignore[misc]
        redis.zadd(keys.WEBHOOKS_DUE, {notice: 0})
        stack.themes("consumer-3", "consumer")
        until("a try", lambda: receiver.ids)
        redis.zadd(keys.WEBHOOKS_DUE, {notice: 0})
    until("the end", lambda: receiver.taken)
    assert receiver.taken[0]["type"] == "job.done"


def test_a_notice_that_nobody_takes_is_given_up_and_said(stack: Engine, receiver: Receiver) -> None:
    _with_webhook(stack, receiver.url, THEMES_WEBHOOK__RETRY_HOURS="0", THEMES_WEBHOOK__TIMEOUT_SECONDS="5")
    stack.themes("worker", "worker", "--name", "w")
    assert stack.run("enqueue", "-", "--wait", stdin="Kyoto, Japan\n").returncode == 0
    until("the end of it", lambda: stack.logged("consumer-2", "webhook_lost"))
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        until("nothing more to tell", lambda: not redis.exists(keys.WEBHOOKS, keys.WEBHOOKS_DUE))


def test_a_server_that_hangs_is_left_after_timeout_seconds(stack: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        more = {"THEMES_WEBHOOK__PRIVATE_HOSTS": "127.0.0.1", "THEMES_WEBHOOK__TIMEOUT_SECONDS": "0.2"}
        _with_webhook(stack, url, **more)
        job_id = stack.run("enqueue", "-", stdin="Kyoto, Japan\n").stdout.strip()
        assert stack.run("cancel", job_id).returncode == 0
        until("a try", lambda: stack.logged("consumer-2", "webhook_failed"))
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        (raw,) = redis.hvals(keys.WEBHOOKS)  # type: ignore[misc]
        assert redis.ttl(keys.WEBHOOKS) > 0 < redis.ttl(keys.WEBHOOKS_DUE)
    notice = json.loads(raw)
    assert json.loads(notice["body"])["data"]["state"] == "cancelled"
    assert notice["tries"] >= 1


def test_a_url_without_a_secret_is_refused_by_its_name(stack: Engine) -> None:
    said = stack.run("status", THEMES_WEBHOOK__URL="https://example.org/hook")
    assert said.returncode == 2
    assert "webhook.url (environment THEMES_WEBHOOK__URL): needs webhook.secret" in said.stderr
    for secret in ("whsec_*", "whsec_", "any text"):
        said = stack.run("status", THEMES_WEBHOOK__URL="https://example.org/hook", THEMES_WEBHOOK__SECRET=secret)
        assert "expected whsec_ and base64 behind that" in said.stderr
