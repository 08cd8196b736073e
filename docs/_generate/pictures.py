"""Take the pictures of the dashboard in docs/pictures, from a running system.

    themes up --workers 4 --sandbox, themes enqueue some-hundred-destinations.csv, and while it runs
    python docs/_generate/pictures.py http://127.0.0.1:5555 JOB

Each is 1,200 pixels wide and a PNG below 100 KB.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp

WIDTH = 1_200
MOST_BYTES = 100_000
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--remote-debugging-port=0",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
#: File -> its page, and pixels of its height.
PICTURES = {
    "jobs": ("/jobs", 420),
    "job": ("/jobs/{job}", 640),
    "llm": ("/llm", 840),
    "profile": ("{profile}", 560),
    "flower-workers": ("/workers", 560),
    "flower-tasks": ("/tasks", 480),
}


class Tab:
    """One tab of Chromium, by its DevTools protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while (said := await self._socket.receive_json()).get("id") != self._number:
            continue
        return dict(said["result"])

    async def take(self, url: str, height: int, *, width: int, dark: bool, seconds: float) -> bytes:
        """A picture of a page, when its rows have arrived."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}  # noqa: PLR2004
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Page.navigate", url=url)
        await asyncio.sleep(seconds)
        said = await self.call("Page.captureScreenshot", optimizeForSpeed=False)
        return base64.b64decode(said["data"])


def _port(told: Path) -> str:
    """Where Chromium listens for tools; empty until it has said so."""
    with contextlib.suppress(OSError, IndexError):
        return told.read_text("utf-8").splitlines()[0]
    return ""


@contextlib.asynccontextmanager
async def chromium() -> Any:
    """A tab of a Chromium of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [shutil.which("chromium") or "chromium", *OPTIONS, f"--user-data-dir={folder}"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: ASYNC220, S603  # the browser
        try:
            port = ""
            while not port:
                await asyncio.sleep(0.1)
                port = _port(Path(folder, "DevToolsActivePort"))
            async with aiohttp.ClientSession() as session:
                async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
                    page = await answer.json()
                async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Tab(socket)
        finally:
            process.terminate()
            process.wait()


async def take_all(told: argparse.Namespace) -> int:
    """Write the pictures; 1 when one is too large."""
    told.folder.mkdir(parents=True, exist_ok=True)
    too_large = 0
    async with chromium() as tab:
        for name, (path, height) in PICTURES.items():
            url = told.url + path.format(job=told.job, profile=told.profile)
            made = await tab.take(url, height, width=told.width, dark=told.dark, seconds=told.seconds)
            (told.folder / f"{name}.png").write_bytes(made)
            print(f"{name}.png {len(made):,} bytes")  # noqa: T201  # for its user
            too_large += len(made) >= MOST_BYTES
    return 1 if too_large else 0


def main() -> int:
    """Take the pictures of the job that was named, or of the newest."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("url")
    parser.add_argument("job", nargs="?")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1] / "pictures")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--seconds", type=float, default=4.0, help="to wait for what arrives")
    told = parser.parse_args()
    if not told.job:
        with urllib.request.urlopen(f"{told.url}/jobs.json", timeout=10) as answer:  # noqa: S310  # the dashboard's
            told.job = json.load(answer)[0]["job_id"]
    with urllib.request.urlopen(f"{told.url}/jobs/{told.job}/destinations", timeout=10) as answer:  # noqa: S310
        found = re.search(rf'href="(/jobs/{re.escape(told.job)}/destinations/[^"?]+)"', answer.read().decode())
    told.profile = found[1] if found else "/jobs"
    return asyncio.run(take_all(told))


if __name__ == "__main__":
    sys.exit(main())
