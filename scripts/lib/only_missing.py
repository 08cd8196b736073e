"""`--only-missing`: leave out what has a current profile already."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Final

from config.settings import Settings
from tasks.identity import destination_id, nearby_ids
from tasks.messages import Destination
from workers.pipeline.prompts import pipeline_version, stages_of
from workers.results.database.manager import AsyncDatabaseManager

PAGE: Final = 500


class OnlyMissing:
    """The destinations of a stream without a complete profile by today's prompts in any job.

    A profile for coordinates in the grid's next cell counts too (`tasks.identity`).
    """

    def __init__(self, destinations: Iterable[Destination], settings: Settings, *, columns: Sequence[str] = ()) -> None:
        self._destinations = iter(destinations)
        self._settings = settings
        self._version = pipeline_version(stages_of(settings), columns)
        self.skipped = 0

    def __iter__(self) -> Iterator[Destination]:
        store = AsyncDatabaseManager.from_settings(self._settings)
        with asyncio.Runner() as runner:
            try:
                if runner.run(store.is_empty()):
                    yield from self._destinations
                    return
                runner.run(store.open())
                while page := list(islice(self._destinations, PAGE)):
                    ids = {one.id: [one.id, *_nearby(one)] for one in page}
                    known = runner.run(self._current(store, list(chain.from_iterable(ids.values()))))
                    missing = [one for one in page if known.isdisjoint(ids[one.id])]
                    self.skipped += len(page) - len(missing)
                    yield from missing
            finally:
                runner.run(store.close())

    async def _current(self, store: AsyncDatabaseManager, ids: list[str]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(ids), PAGE):
            found |= await store.current(ids[start : start + PAGE], self._version)
        return found


def _nearby(one: Destination) -> list[str]:
    """The other ids that a destination may have had, where its coordinates belong to its id."""
    if one.lat is None or one.lon is None:
        return []
    if one.id != destination_id(one.name, one.country, one.region, one.lat, one.lon):
        return []
    return nearby_ids(one.name, one.country, one.region, one.lat, one.lon)
