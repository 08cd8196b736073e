"""A chat-completions server that takes for each destination as long as it is told: `paced_server.py SECONDS.json`.

The file has one number a destination: the seconds of "City 0", "City 1" and so on; with a single number all take it.
Every answer is one theme, for a prompt of `write_prompts`.
"""

import asyncio
import json
import re
import sys
from pathlib import Path

if __package__ is None or not __package__:
    from full_answers import completion  # started as a script, its folder is on the path
    from light_server import Connection, reply, serve
else:
    from tests.benchmarks.full_answers import completion
    from tests.benchmarks.light_server import Connection, reply, serve

CITY = re.compile(rb"City (\d+)")
THEME = {"name": "A theme", "description": "What a traveller does there.", "citations": []}
ANSWER = reply(completion(json.dumps({"themes": [THEME]})))
PROMPT = """---
stage: discover.culture
asks: new themes
count: [1, 1]
max_tokens: 200
---
Find 1 travel theme of the kind **culture** for the destination below.
"""


def write_prompts(folder: Path) -> Path:
    """A pipeline of one prompt: a destination is one call."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "system.md").write_text("You find travel themes.\n")
    (folder / "discover.culture.md").write_text(PROMPT)
    return folder


class Paced(Connection):
    """A connection that waits as long as its destination takes."""

    def __init__(self, seconds: list[float]) -> None:
        super().__init__()
        self._all = seconds

    def seconds_of(self, request: bytes) -> float:
        found = CITY.search(request)
        return self._all[int(found[1]) % len(self._all)] if found else 0.0

    def answer_to(self, request: bytes) -> bytes:
        del request
        return ANSWER


if __name__ == "__main__":
    asyncio.run(serve(Paced, json.loads(Path(sys.argv[1]).read_text())))
