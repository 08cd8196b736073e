"""`/llm`: LLM calls, cache, pools and queues of all processes; `pages/llm.js` replaces what has changed."""

import asyncio
from typing import Any

import msgspec

from workers.dashboard.guard import Handler
from workers.dashboard.jobs_pages import PageHandler, Site
from workers.dashboard.llm_charts import HEIGHT, WIDTH
from workers.dashboard.llm_values import page_values
from workers.diagnosis.system import SystemReader


class LlmPage(PageHandler):
    def initialize(self, site: Site, system: SystemReader, turns: asyncio.Lock) -> None:  # type: ignore[override]  # Tornado's keywords
        super().initialize(site)
        self._system = system
        self._turns = turns

    async def answer(self, *parts: str) -> None:
        # One at a time: the others find what the first has read, and keep no thread of Flower's waiting meanwhile.
        async with self._turns:
            system = await asyncio.to_thread(self._system.read)
            points = await asyncio.to_thread(self._system.points)
        words = page_values(system, points)
        if parts[0]:
            self.set_header("Content-Type", "application/json; charset=utf-8")
            self.finish(msgspec.json.encode({"at": system.at, **words}))
        else:
            self.show("llm.html", here="llm", width=WIDTH, height=HEIGHT, **words)


def handlers(site: Site, system: SystemReader) -> list[tuple[str, type[Handler], dict[str, Any]]]:
    shared = {"site": site, "system": system, "turns": asyncio.Lock()}
    return [(r"/llm()/?", LlmPage, shared), (r"/llm(\.json)", LlmPage, shared)]
