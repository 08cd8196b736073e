"""Celery as people write it, to stand beside: `celery -A tests.benchmarks.plain_celery worker`.

A task a destination. It asks its sixteen prompts one after the other with a blocking client, puts the answers together
and commits one row. It has no cache, no books, no validation and no results stream; its message is acknowledged early.
PLAIN_BODIES is a file with the sixteen requests about PLACE, those that find themes first.
"""

import json
import os
import sqlite3
import time
from functools import cache
from pathlib import Path
from typing import Any, Final

import requests
from celery import Celery

#: Stands in the requests where the destination's name comes.
PLACE: Final = 987654321
app = Celery("plain", broker=os.environ.get("PLAIN_BROKER"))
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)


@cache
def session() -> requests.Session:
    """One a process, so that connections are kept."""
    made = requests.Session()
    made.headers.update({"Content-Type": "application/json", "Authorization": "Bearer none"})
    return made


@cache
def bodies() -> list[str]:
    found: list[str] = json.loads(Path(os.environ["PLAIN_BODIES"]).read_text("utf-8"))
    return found


@cache
def database() -> sqlite3.Connection:
    """One connection a process; the default journal would make two processes wait for each other."""
    made = sqlite3.connect(os.environ["PLAIN_DATABASE"], timeout=60)
    made.execute("PRAGMA journal_mode=WAL")
    made.execute("CREATE TABLE IF NOT EXISTS profiles (name TEXT PRIMARY KEY, payload TEXT, began REAL, ended REAL)")
    return made


def ask(body: str, name: str) -> dict[str, Any]:
    """One call; the answer's JSON."""
    url = f"{os.environ['OPENAI_BASE_URL']}/chat/completions"
    answer = session().post(url, data=body.replace(str(PLACE), name).encode(), timeout=60)
    answer.raise_for_status()
    content: dict[str, Any] = json.loads(answer.json()["choices"][0]["message"]["content"])
    return content


@app.task  # type: ignore[untyped-decorator]
def destination(name: str) -> None:
    began, themes = time.time(), list[dict[str, Any]]()
    profile: dict[str, Any] = {"name": name, "themes": themes}
    for body in bodies():
        answer = ask(body, name)
        themes.extend(answer.pop("themes", []))
        for key, value in answer.items():
            if key.startswith("t") and key[1:].isdigit():
                themes[int(key[1:]) - 1].update(value)
            else:
                profile[key] = value
    with database() as db:
        row = (name, json.dumps(profile), began, time.time())
        db.execute("INSERT OR REPLACE INTO profiles VALUES (?, ?, ?, ?)", row)
