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
    from light_server import Connection  # started as a script, its folder is on the path
else:
    from tests.benchmarks.light_server import Connection

CITY = re.compile(rb"City (\d+)")
THEME = {"name": "A theme", "description": "What a traveller does there.", "citations": []}
ANSWER = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "model": "sandbox",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": json.dumps({"themes": [THEME]})},
            }
        ],
        "usage": {"prompt_tokens": 400, "completion_tokens": 60, "total_tokens": 460},
    }
).encode()
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

    reply = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(ANSWER),
        ANSWER,
    )

    def __init__(self, seconds: list[float]) -> None:
        super().__init__(0.0)
        self._all = seconds

    def data_received(self, data: bytes) -> None:
        self._seconds = self._of(self._received + data)
        super().data_received(data)

    def _of(self, request: bytes) -> float:
        found = CITY.search(request)
        return self._all[int(found[1]) % len(self._all)] if found else 0.0


async def main() -> None:
    seconds = json.loads(Path(sys.argv[1]).read_text())
    server = await asyncio.get_running_loop().create_server(lambda: Paced(seconds), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
