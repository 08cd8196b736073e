"""`--only-missing`: leave out what has a current profile already."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Final

from config.settings import Settings
from tasks.identity import destination_id, nearby_ids
from tasks.messages import Destination
from tasks.packed import stages_of as packed_stages
from tasks.packed import version_of
from workers.pipeline.fields import stages_for
from workers.pipeline.prompts import pipeline_version, stages_of
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.queries.lookups import HowMade, how_made

PAGE: Final = 500


class OnlyMissing:
    """The destinations of a stream without a complete profile by today's prompts in any job.

    With `fields` a profile is complete that has these, whatever else it has or lacks.
    A profile for coordinates in the grid's next cell counts too (`tasks.identity`).
    """

    def __init__(
        self,
        destinations: Iterable[Destination],
        settings: Settings,
        *,
        columns: Sequence[str] = (),
        fields: Sequence[str] = (),
    ) -> None:
        self._destinations = iter(destinations)
        self._settings = settings
        self._columns = columns
        stages = stages_of(settings)
        self._version = pipeline_version(stages, columns)
        self._wanted = {stage.name: stage.version for stage in stages_for(stages, fields)} if fields else None
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
            page = ids[start : start + PAGE]
            if self._wanted is None:
                found |= await store.current(page, self._version)
            else:
                found |= {one.destination_id for one in await how_made(store, page) if self._has_fields(one)}
        return found

    def _has_fields(self, made: HowMade) -> bool:
        """Whether a profile has whole what is wanted, by today's prompts, which showed the model the same columns."""
        records = packed_stages(made.stages)
        whole = {(record.stage, record.prompt_version) for record in records if record.status == "ok"}
        if self._wanted is None or not whole.issuperset(self._wanted.items()):
            return False
        return made.pipeline_version == version_of(
            ((record.stage, record.prompt_version) for record in records), self._columns
        )


def _nearby(one: Destination) -> list[str]:
    """The other ids that a destination may have had, where its coordinates belong to its id."""
    if one.lat is None or one.lon is None:
        return []
    if one.id != destination_id(one.name, one.country, one.region, one.lat, one.lon):
        return []
    return nearby_ids(one.name, one.country, one.region, one.lat, one.lon)
