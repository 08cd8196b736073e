"""Redis over TLS: a certificate that is trusted works for every role, another one is refused by all of them."""

import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError

from config.settings import load
from scripts.lib.local_redis import LocalRedis
from tasks.queue.app import configure
from tests.e2e.conftest import Engine, until
from tests.support.tls import certificate, front


@dataclass
class Server:
    url: str
    authority: Path

    @property
    def trusted(self) -> str:
        return f"{self.url}?ssl_ca_certs={self.authority}"


@pytest.fixture
def tls(engine: Engine) -> Iterator[Server]:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    files = certificate(engine.folder, "redis")
    with LocalRedis(engine.folder / "redis-var", "bundled") as server:
        port = int(server.url.rpartition(":")[2].partition("/")[0])
        with front(port, *files) as open_port:
            yield Server(re.sub(r"^redis://(.*):\d+/", rf"rediss://\1:{open_port}/", server.url), files[0])
            engine.stop()


def test_every_role_works_with_a_certificate_that_is_trusted(engine: Engine, tls: Server) -> None:
    engine.env["REDIS_URL"] = tls.trusted
    engine.sandbox("--latency", "20ms")
    engine.themes("consumer", "consumer")
    engine.themes("worker", "worker")
    engine.themes("dashboard", "dashboard", "--port", "0", THEMES_LOGGING__FORMAT="json")
    said = engine.run("enqueue", "-", "--wait", stdin="name\nKyoto\nOslo\nLima\n")
    assert said.returncode == 0, said.stderr
    for words in (["status"], ["watch", said.stdout.strip()], ["health", "worker"], ["health", "consumer"]):
        ran = engine.run(*words)
        assert ran.returncode == 0, ran.stderr
    port = until("the dashboard", lambda: re.search(r"http://127\.0\.0\.1:(\d+)", engine.log("dashboard")))[1]
    for page in ("jobs", "metrics", "workers", "broker"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=180) as answer:
            assert answer.status == 200
    assert "Traceback" not in "".join(engine.log(name) for name in ("consumer", "worker", "dashboard"))


@pytest.mark.parametrize("verb", ["worker", "consumer", "dashboard", "enqueue -", "status", "health worker"])
def test_a_certificate_that_is_not_trusted_is_refused_in_one_line(verb: str, engine: Engine, tls: Server) -> None:
    env = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "THEMES_MODEL": "m"}
    ran = engine.run(*verb.split(), stdin="Kyoto\n", REDIS_URL=tls.url, **env)
    said = ran.stdout + ran.stderr
    assert ran.returncode == (0 if verb == "health worker" else 2)
    assert re.search(r"certificate verify failed.*REDIS_URL, rediss://host:port/1\?ssl_ca_certs=FILE", said), said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1


def test_a_certificate_for_another_address_is_refused(engine: Engine, tls: Server) -> None:
    files = certificate(engine.folder, "other", "DNS:redis.example")
    port = int(tls.url.rpartition(":")[2].partition("/")[0])
    with front(port, *files) as open_port:
        url = tls.url.replace(f":{port}/", f":{open_port}/") + f"?ssl_ca_certs={files[0]}"
        ran = engine.run("status", REDIS_URL=url)
    assert ran.returncode == 2
    assert "certificate verify failed" in ran.stderr
    assert ran.stderr.endswith(
        ": its certificate is for another host: write a name or address into REDIS_URL that it has\n"
    )


def test_a_certificate_whose_time_is_over_is_to_be_renewed(engine: Engine, tls: Server) -> None:
    valid, key = certificate(engine.folder, "old")
    again = ["openssl", "x509", "-in", valid, "-signkey", key, "-days", "-1", "-out", engine.folder / "over.crt"]
    subprocess.run(again, check=True, capture_output=True)
    files = (engine.folder / "over.crt", key)
    port = int(tls.url.rpartition(":")[2].partition("/")[0])
    with front(port, *files) as open_port:
        url = tls.url.replace(f":{port}/", f":{open_port}/") + f"?ssl_ca_certs={files[0]}"
        ran = engine.run("status", REDIS_URL=url)
    assert ran.returncode == 2
    assert ran.stderr.endswith(": have its certificate renewed\n")


def test_what_has_no_tls_or_no_authority_has_the_mend_for_that(engine: Engine, tls: Server) -> None:
    mends = {
        tls.url.replace("rediss://", "redis://"): "it speaks TLS: write rediss:// in REDIS_URL",
        f"{tls.url}?ssl_ca_certs=/nowhere.crt": "REDIS_URL names a file that is not there, /nowhere.crt",
    }
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mends[f"rediss://127.0.0.1:{silent.getsockname()[1]}/1"] = "it may not speak TLS: write redis:// in REDIS_URL"
        for url, mend in mends.items():
            ran = engine.run("status", REDIS_URL=url, THEMES_REDIS__SOCKET_TIMEOUT_SECONDS="1")
            assert ran.returncode == 2
            assert ran.stderr.endswith(f": {mend}\n"), ran.stderr
            assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "is_refused"),
    [
        ("", True),
        ("?ssl_ca_certs=AUTHORITY", False),
        ("?ssl_cert_reqs=none", False),
        ("?ssl_cert_reqs=CERT_NONE", False),
    ],
)
def test_celery_itself_verifies_unless_it_is_told_not_to(options: str, is_refused: bool, tls: Server) -> None:
    url = tls.url + options.replace("AUTHORITY", str(tls.authority))
    app = configure(load(env={}), url)
    with app.connection() as connection:
        if is_refused:
            with pytest.raises(OperationalError, match="certificate verify failed"):
                connection.ensure_connection(max_retries=1)
        else:
            connection.ensure_connection(max_retries=1)
