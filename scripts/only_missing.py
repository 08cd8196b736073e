"""`--only-missing`: leave out what has a current profile already."""

import asyncio
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from config.settings import Settings
from tasks.messages import Destination
from workers.pipeline.prompts import pipeline_version, stages_of
from workers.results.store import AsyncDatabaseManager

#: Destinations that one query asks about.
PAGE: Final = 500


class OnlyMissing:
    """Passes on the destinations of a stream that have no complete profile made by today's prompts, in no job.

    Without a database nothing has one.
    """

    def __init__(self, destinations: Iterable[Destination], settings: Settings) -> None:
        self._destinations = iter(destinations)
        self._settings = settings
        self._version = pipeline_version(stages_of(settings))
        self.skipped = 0

    def __repr__(self) -> str:
        return f"<OnlyMissing version={self._version} skipped={self.skipped}>"

    def __iter__(self) -> Iterator[Destination]:
        store = AsyncDatabaseManager.from_settings(self._settings)
        if not store.exists():
            yield from self._destinations
            return
        with asyncio.Runner() as runner:
            runner.run(store.open())
            try:
                while page := list(islice(self._destinations, PAGE)):
                    current = runner.run(store.current([one.id for one in page], self._version))
                    self.skipped += len(current)
                    yield from (one for one in page if one.id not in current)
            finally:
                runner.run(store.close())
