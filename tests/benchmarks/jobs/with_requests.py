"""A destination by requests: its calls one after the other, on a session that its thread keeps."""

import threading
import time
from typing import Final

import requests

from tests.benchmarks.jobs.destination import HEADERS, content_of, keep, requests_about, url

_of_thread: Final = threading.local()


def _session() -> requests.Session:
    if not hasattr(_of_thread, "session"):
        _of_thread.session = requests.Session()
        _of_thread.session.headers.update(HEADERS)
    made: requests.Session = _of_thread.session
    return made


def work(name: str) -> None:
    began, contents = time.time(), []
    for body in requests_about(name):
        answer = _session().post(url(), data=body, timeout=60)
        answer.raise_for_status()
        contents.append(content_of(answer.json()))
    keep(name, contents, began)
