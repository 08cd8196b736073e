"""The dashboard: whether it answers, is ours, and asks for the password."""

import http.client
import socket
from collections.abc import Iterator
from typing import Final

from config.settings import Settings
from workers.dashboard.flower import refuse_open
from workers.doctor.check import Check

ANSWER_SECONDS: Final = 4.0
#: Addresses that mean all of them, and where such a server is reached from here.
_ALL: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # compared with, not bound to
_UNAUTHORIZED: Final = 401
#: Bytes of its first page in which its name is looked for.
PAGE_BYTES: Final = 200_000


def checks(settings: Settings) -> Iterator[Check]:
    place = f"http://{settings.dashboard.host}:{settings.dashboard.port}"
    refuse_open(settings)
    host = _ALL.get(settings.dashboard.host, settings.dashboard.host)
    try:
        status, page = _get(host, settings.dashboard.port)
    except ConnectionRefusedError:
        yield Check("dashboard", ok=True, found=f"{place} is free: `themes dashboard` has not been started")
        return
    except (OSError, http.client.HTTPException) as exc:
        found = f"what listens at {place} does not answer as a dashboard does ({type(exc).__name__}: {exc})"
        yield Check("dashboard", ok=False, found=found, fix=_another(settings))
        return
    if settings.dashboard.basic_auth and status != _UNAUTHORIZED:
        found = f"{place} answers {status} without a password, though dashboard.basic_auth is set"
        yield Check("dashboard", ok=False, found=found, fix="start `themes dashboard` again: it has older settings")
    elif status == _UNAUTHORIZED:
        yield Check("dashboard", ok=True, found=f"{place} answers, and asks for a password")
    elif b"themes" in page:
        yield Check("dashboard", ok=True, found=f"{place} answers, to this machine only")
    else:
        yield Check(
            "dashboard", ok=False, found=f"{place} is another program's (status {status})", fix=_another(settings)
        )


def _another(settings: Settings) -> str:
    return f"`themes dashboard --port {settings.dashboard.port + 1}`, or stop what listens there"


def _get(host: str, port: int) -> tuple[int, bytes]:
    if not port:
        raise ConnectionRefusedError  # any free port: which is not known
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/jobs")
        answer = connection.getresponse()
        return answer.status, answer.read(PAGE_BYTES)
    except socket.gaierror as exc:
        raise OSError(f"{host}: {exc.strerror}") from exc
    finally:
        connection.close()
