"""Draw a page as SVG: the picture of the dashboard in README, as text that git can hold.

    themes up --sandbox, themes enqueue config/destinations.csv, and while it runs
    python docs/picture.py http://127.0.0.1:5555/jobs/JOB docs/dashboard.svg

Chromium lays the page out; every visible box and line of text is then written down where it stands.
"""

import asyncio
import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

WIDTH, HEIGHT = 1280, 1000
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--remote-debugging-port=0",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
DRAW = """
(() => {
  const out = [], W = WIDTH, H = HEIGHT;
  const esc = s => s.replace(/&/g, '&amp;').replace(/</g, '&lt;');
  const clear = c => c === 'rgba(0, 0, 0, 0)' || c === 'transparent';
  const accent = getComputedStyle(document.documentElement).getPropertyValue('--accent').trim() || 'green';
  const round = n => Math.round(n * 10) / 10;
  const shown = (r) => r.width > 1 && r.height > 1 && r.top < H && r.left < W && r.bottom > 0;
  for (const el of document.querySelectorAll('body, body *')) {
    const s = getComputedStyle(el), r = el.getBoundingClientRect();
    if (s.visibility === 'hidden' || s.opacity === '0' || !shown(r)) continue;
    const line = s.borderTopWidth !== '0px' && s.borderTopStyle !== 'none' && !clear(s.borderTopColor);
    if (!clear(s.backgroundColor) || line)
      out.push(`<rect x="${round(r.left)}" y="${round(r.top)}" width="${round(r.width)}" height="${round(r.height)}" ` +
        `rx="${Math.min(parseFloat(s.borderRadius) || 0, r.height / 2)}" ` +
        `fill="${clear(s.backgroundColor) ? 'none' : s.backgroundColor}"` +
        (line ? ` stroke="${s.borderTopColor}" stroke-width="0.5"` : '') + '/>');
    if (el.tagName === 'PROGRESS')
      out.push(`<rect x="${round(r.left)}" y="${round(r.top)}" width="${round(r.width * el.value / el.max)}" ` +
        `height="${round(r.height)}" rx="${r.height / 2}" fill="${accent}"/>`);
    if (el.tagName === 'path') {
      const m = el.getScreenCTM();
      out.push(`<path d="${el.getAttribute('d')}" transform="matrix(${[m.a, m.b, m.c, m.d, m.e, m.f].map(round)})" ` +
        `fill="${s.fill}" stroke="${s.stroke}" stroke-width="${parseFloat(s.strokeWidth)}"/>`);
    }
    for (const node of el.childNodes) {
      if (node.nodeType !== 3 || !node.textContent.trim()) continue;
      // A text may have several lines: its words, by their height on the page.
      const lines = [];
      for (const word of node.textContent.matchAll(/\\S+/g)) {
        const range = document.createRange();
        range.setStart(node, word.index); range.setEnd(node, word.index + word[0].length);
        const b = range.getBoundingClientRect(), last = lines[lines.length - 1];
        if (last && Math.abs(last.top - b.top) < 2) { last.right = b.right; last.words.push(word[0]); }
        else lines.push({ left: b.left, right: b.right, top: b.top, height: b.height, words: [word[0]] });
      }
      for (const b of lines) {
        if (b.top > H || b.right > W + 40 || b.right - b.left < 1) continue;
        let text = b.words.join(' ');
        if (s.textTransform === 'uppercase') text = text.toUpperCase();
        out.push(`<text x="${round(b.left)}" y="${round(b.top + b.height * 0.76)}" fill="${s.color}" ` +
          `font-size="${parseFloat(s.fontSize)}" font-weight="${s.fontWeight}" ` +
          `textLength="${round(b.right - b.left)}" lengthAdjust="spacingAndGlyphs">${esc(text)}</text>`);
      }
    }
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${W} ${H}" ` +
    `font-family="system-ui, sans-serif">\\n<rect width="${W}" height="${H}" fill="white"/>\\n` +
    out.join('\\n') + '\\n</svg>\\n';
})()
""".replace("WIDTH", str(WIDTH)).replace("HEIGHT", str(HEIGHT))


async def draw(url: str, port: int) -> str:
    """The page at `url` as SVG, by the Chromium that listens for tools on `port`."""
    async with aiohttp.ClientSession() as session:
        async with session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
            page = await answer.json()
        async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:

            async def call(number: int, method: str, **params: Any) -> dict[str, Any]:
                await socket.send_json({"id": number, "method": method, "params": params})
                while (said := await socket.receive_json()).get("id") != number:
                    continue
                return dict(said["result"])

            size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
            await call(1, "Emulation.setDeviceMetricsOverride", **size)
            await call(2, "Page.navigate", url=url)
            await asyncio.sleep(4)  # rows arrive
            drawn = await call(3, "Runtime.evaluate", expression=DRAW, returnByValue=True)
            return str(drawn["result"]["value"])


def main() -> int:
    """Write the picture."""
    url, target = sys.argv[1:3]
    chromium = shutil.which("chromium") or "chromium"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(  # noqa: S603  # the browser found above
            [chromium, *OPTIONS, f"--user-data-dir={folder}"], stderr=subprocess.DEVNULL
        )
        try:
            told = Path(folder, "DevToolsActivePort")
            port = ""
            while not port:
                with contextlib.suppress(OSError, IndexError):
                    port = told.read_text().splitlines()[0]
            Path(target).write_text(asyncio.run(draw(url, int(port))), encoding="utf-8")
        finally:
            process.terminate()
            process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
