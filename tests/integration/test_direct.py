"""Entries straight into the database, as `themes run` writes them."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from config.settings import Settings
from tasks.messages import Destination, Usage
from tasks.storable import clean_destination
from tests.support.stored import announced, done, failed, packed_as, places
from workers.local.writer import DirectWriter
from workers.results.database.manager import AsyncDatabaseManager


async def test_what_cannot_be_stored_ends_its_destination_and_the_run_goes_on(tmp_path: Path) -> None:
    """An entry that neither the database takes nor a message can carry ended `themes run` in a traceback."""
    towns = places(5)
    written: list[Any] = []
    odd = Destination("odd", "Br\ud800ugge\0", extra={"\udfff": "\x1b[2J"})
    async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{tmp_path / 'themes.db'}", pool_size=2) as store:
        async with DirectWriter(store, Settings(), written.append) as writer:
            for entry in (
                *announced(*towns, odd),
                packed_as(done(towns[0]), model="\ud800"),
                packed_as(done(towns[1]), body=b"no frame", missing="\udfff"),
                msgspec.structs.replace(done(towns[2]), usage=Usage(llm_calls=1, prompt_tokens=2**64)),
                failed(towns[3], message="\ud800"),
                done(towns[4]),
                done(clean_destination(odd)),
            ):
                await asyncio.wait_for(await writer.put(entry), 180)
        job = await store.job("j")
        assert job
        assert (job.state, job.done, job.failed) == ("done", 3, 3)
        stages = [failure.stage async for failure in store.failures("j")]
        assert stages == ["store", "store", "discover.food"]
        assert [row.destination.name async for row in store.destinations("j")][-1] == "Br\ufffdugge"
    assert sum(len(applied.outcomes) for applied in written) == 6
