"""What every contestant does of a destination: its sixteen requests, the profile of their answers, one row, one commit.

Standard library alone. JOB_BODIES is a file with the requests about PLACE, those that find themes first; JOB_DATABASE
is the SQLite file. A destination may be done twice, and then has two rows: nothing here keeps that from happening.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

#: Stands in the requests where the destination's name comes.
PLACE: Final = 987654321
HEADERS: Final = {"Content-Type": "application/json", "Authorization": "Bearer none"}
_of_thread: Final = threading.local()


def url() -> str:
    return f"{os.environ['OPENAI_BASE_URL']}/chat/completions"


@cache
def _bodies() -> list[str]:
    found: list[str] = json.loads(Path(os.environ["JOB_BODIES"]).read_text("utf-8"))
    return found


def requests_about(name: str) -> Iterator[bytes]:
    for body in _bodies():
        yield body.replace(str(PLACE), name).encode()


def content_of(answer: dict[str, Any]) -> dict[str, Any]:
    """What the model has said, as people read it: JSON, without a look at its schema."""
    content: dict[str, Any] = json.loads(answer["choices"][0]["message"]["content"])
    return content


def profile_of(name: str, contents: Iterable[dict[str, Any]]) -> dict[str, Any]:
    themes: list[dict[str, Any]] = []
    profile: dict[str, Any] = {"name": name, "themes": themes}
    for content in contents:
        themes.extend(content.pop("themes", []))
        for key, value in content.items():
            if key.startswith("t") and key[1:].isdigit():
                themes[int(key[1:]) - 1].update(value)
            else:
                profile[key] = value
    return profile


def _database() -> sqlite3.Connection:
    """One connection a thread; the default journal would make two writers wait for each other."""
    if not hasattr(_of_thread, "database"):
        _of_thread.database = sqlite3.connect(os.environ["JOB_DATABASE"], timeout=60)
        _of_thread.database.execute("PRAGMA journal_mode=WAL")
        _of_thread.database.execute("CREATE TABLE IF NOT EXISTS profiles (name, payload, began REAL, ended REAL)")
    made: sqlite3.Connection = _of_thread.database
    return made


def keep(name: str, contents: Iterable[dict[str, Any]], began: float) -> None:
    payload = json.dumps(profile_of(name, contents))
    with _database() as database:
        database.execute("INSERT INTO profiles VALUES (?, ?, ?, ?)", (name, payload, began, time.time()))


def kept() -> set[str]:
    """The names that have a row."""
    return {name for (name,) in _database().execute("SELECT name FROM profiles")}


def names_of(path: str) -> list[str]:
    return [line.strip() for line in Path(path).read_text("utf-8").splitlines()]
