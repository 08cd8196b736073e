"""A real Chromium, driven over its DevTools protocol (https://chromedevtools.github.io/devtools-protocol/)."""

import asyncio
import base64
import contextlib
import itertools
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--remote-debugging-port=0",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
#: Seconds that anything here may take.
SECONDS = 60


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        #: What the page and its scripts complained about.
        self.errors: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            said = message.json()
            if said.get("id") == 0:
                continue
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Page.javascriptDialogOpening":
                # Nothing goes on until it is closed: nobody waits for the answer here, where answers are read.
                self.errors.append(said["params"]["message"])
                close = {"method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                await self._socket.send_json({"id": 0, **close})
            elif said["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(said["params"]["exceptionDetails"]))
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.errors.append(said["params"]["entry"]["text"] + " " + said["params"]["entry"].get("url", ""))
            elif said["method"] == "Runtime.consoleAPICalled" and said["params"]["type"] == "error":
                self.errors.append(str(said["params"]["args"]))

    async def call(self, method: str, **parameters: Any) -> Any:
        """One command; its result."""
        number = next(self._numbers)
        self._answers[number] = answer = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        said = await asyncio.wait_for(answer, SECONDS)
        assert "error" not in said, said
        return said["result"]

    async def open(self, url: str) -> None:
        """Go there, and wait until it is loaded."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def value(self, expression: str) -> Any:
        """What an expression is in the page."""
        said = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def text(self) -> str:
        """What a person can read."""
        return str(await self.value("document.body.innerText"))

    async def until(self, expression: str) -> Any:
        """Wait until an expression is true."""
        async with asyncio.timeout(SECONDS):
            while not (found := await self.value(expression)):
                await asyncio.sleep(0.05)
        return found

    async def size(self, width: int, height: int) -> None:
        """The window's size in CSS pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    async def dark(self, *, on: bool) -> None:
        """Prefer dark colours."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=features)
        # The page learns of it before it is drawn the next time.
        await self.value("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(() => drawn(1))))")

    async def press(self, key: str) -> None:
        """Press and let go of a key, by its DOM name."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            code = {"Enter": 13, "Tab": 9, "ArrowLeft": 37}[key]
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    async def type(self, letter: str) -> None:
        """Type one letter."""
        await self.call("Input.dispatchKeyEvent", type="keyDown", key=letter, text=letter)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=letter)

    async def picture(self, file: Path) -> None:
        """A picture of the whole page."""
        said = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(said["data"]))


@contextlib.asynccontextmanager
async def page(chromium: str) -> AsyncIterator[Page]:
    """Start Chromium; yields an empty tab."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            assert running.stderr
            address = ""
            while not address:
                line = await asyncio.to_thread(running.stderr.readline)
                assert line, "Chromium has ended"
                _, _, address = line.strip().partition("DevTools listening on ")
            base = address.replace("ws://", "http://").rpartition("/devtools/")[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"{base}/json/list") as answer:
                    (tab,) = [each for each in await answer.json() if each["type"] == "page"]
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    made = Page(socket)
                    for domain in ("Page", "Runtime", "Log"):
                        await made.call(f"{domain}.enable")
                    yield made
                    await socket.close()
                    await made._reading
        finally:
            running.terminate()
            running.wait(180)
            if running.stderr:
                running.stderr.close()
