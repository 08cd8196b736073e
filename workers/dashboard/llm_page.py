"""`/llm`: what LLM calls, cache, pools and queues of all processes are doing, now and over the last hour.

`pages/llm.js` asks for the page again and puts in what has changed, so there is one place that says how it looks.
"""

import asyncio
from typing import Any

import msgspec

from workers.dashboard.handler import Handler
from workers.dashboard.jobs_pages import Page, Site
from workers.dashboard.llm_words import HEIGHT, WIDTH, page_words
from workers.dashboard.system import SystemReader


class LlmPage(Page):
    """`/llm`, and `/llm.json` for programs."""

    def initialize(self, site: Site, system: SystemReader, turns: asyncio.Lock) -> None:  # type: ignore[override]  # Tornado's keywords
        """Called by Tornado with the handler's arguments."""
        super().initialize(site)
        self._system = system
        self._turns = turns

    async def answer(self, *parts: str) -> None:
        """The page; as JSON where the address says so."""
        # One at a time: the others find what the first has read, and keep no thread of Flower's waiting meanwhile.
        async with self._turns:
            system = await asyncio.to_thread(self._system.read)
            points = await asyncio.to_thread(self._system.points)
        words = page_words(system, points)
        if parts[0]:
            self.set_header("Content-Type", "application/json; charset=utf-8")
            self.finish(msgspec.json.encode({"at": system.at, **words}))
        else:
            self.show("llm.html", here="llm", width=WIDTH, height=HEIGHT, **words)


def handlers(site: Site, system: SystemReader) -> list[tuple[str, type[Handler], dict[str, Any]]]:
    """What `server` adds to Flower's."""
    shared = {"site": site, "system": system, "turns": asyncio.Lock()}
    return [(r"/llm()/?", LlmPage, shared), (r"/llm(\.json)", LlmPage, shared)]
