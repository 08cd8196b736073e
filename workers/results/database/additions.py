"""Fields that were added to profiles: a worker tells what it was asked; here it is joined with the stored profile.

The database holds the rest of the profile and the lock, so that nothing which came meanwhile is overwritten unseen.
"""

import logging
from collections.abc import Mapping, Sequence
from itertools import groupby
from types import SimpleNamespace
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from tasks.frames import decompressed
from tasks.messages import Failure, JobOptions, Profile, QualityAssessment, Result, StreamEntry, Theme, Usage
from tasks.packed import pack_profile, profile_of, unpack_profile, version_of
from tasks.storable import STORE_STAGE
from workers.results.database.asked import Asked
from workers.results.database.rows import JobRow
from workers.results.database.statements import StatementStatistics

log = logging.getLogger("themes.database")

#: The class of the failure where the stored profile is not the one that was added to.
CHANGED: Final = "ProfileChangedError"
#: What the stages that find themes fill; an addition leaves it as it is.
_FOUND: Final = frozenset({"id", "category", "name", "description", "citations", "citations_supported", "more"})
_ADDED: Final = tuple(name for name in Theme.__struct_fields__ if name not in _FOUND)


async def whole_entries(
    connection: AsyncConnection,
    entries: Sequence[StreamEntry],
    jobs: Mapping[str, JobRow],
    asked: Asked,
    times: StatementStatistics,
) -> Sequence[StreamEntry]:
    """The entries of a batch, each addition as the whole profile that it makes of the stored one."""
    adding = [entry for entry in entries if isinstance(entry, Result) and entry.adds and entry.profile is not None]
    if not adding:
        return entries
    stored: dict[tuple[str, str], Profile] = {}
    for job_id, of_job in groupby(sorted(adding, key=lambda one: one.job_id), key=lambda one: one.job_id):
        ids = list({one.destination_id for one in of_job})
        for row in await asked.stored.of(connection, job_id, ids, times):
            stored[job_id, row[0]] = _stored(row)
    whole = {id(one): _whole(one, stored.get((one.job_id, one.destination_id)), jobs[one.job_id]) for one in adding}
    return [whole.get(id(entry), entry) for entry in entries]


def _stored(row: Sequence[Any]) -> Profile:
    """A stored profile as far as it counts here: its costs are those of its stages."""
    names = ("name", "country", "status", "model", "pipeline_version", "stages", "missing", "elapsed_ms", "created_at")
    head = SimpleNamespace(**dict(zip(names, row[1:-1], strict=True)), usage=Usage(), extra={})
    return profile_of(head, row[0], decompressed(row[-1]))


def _whole(added: Result, stored: Profile | None, job: JobRow) -> Result:
    assert added.profile is not None  # noqa: S101  # the caller picked profiles
    more = unpack_profile(added.profile, added.destination_id)
    if stored is None or _themes(stored) != _themes(more):
        found = "changed" if stored else "went"
        log.warning("action=addition_refused job_id=%s its profile %s meanwhile", added.job_id, found)
        said = f"the profile {found} while fields were added to it: `themes extend` adds them to what is there now"
        failure = Failure(STORE_STAGE, CHANGED, said, added.attempt)
        return msgspec.structs.replace(added, profile=None, failure=failure)
    columns = msgspec.json.decode(job.options, type=JobOptions).columns if job.options else ()
    return msgspec.structs.replace(added, profile=pack_profile(merged(stored, more, columns)))


def _themes(profile: Profile) -> list[tuple[str, str]]:
    return [(theme.category, theme.name) for theme in profile.themes]


def merged(stored: Profile, added: Profile, columns: Sequence[str] = ()) -> Profile:
    """The stored profile with what was added; `columns` of the input are shown to the model.

    What was added before is left as it stands, so that the same addition may come twice.
    """
    again = {record.stage for record in added.stages}
    if all(record in stored.stages for record in added.stages):
        new = stored
    else:
        kept = [record for record in stored.stages if record.stage not in again]
        stages = sorted([*kept, *added.stages], key=lambda record: record.stage)
        missing = [*(each for each in stored.missing if each.stage not in again), *added.missing]
        new = msgspec.structs.replace(
            stored,
            status="partial" if missing else "ok",
            pipeline_version=version_of(((one.stage, one.prompt_version) for one in stages), columns),
            themes=[_theme(*pair) for pair in zip(stored.themes, added.themes, strict=True)],
            overlap_analysis=added.overlap_analysis or stored.overlap_analysis,
            quality_assessment=_quality(stored, added, shares=(len(kept), len(added.stages))),
            missing=missing,
            stages=stages,
            more=stored.more | added.more,
            elapsed_ms=round(stored.elapsed_ms + added.elapsed_ms, 1),
        )
    usage = sum((record.usage for record in new.stages), Usage())
    return msgspec.structs.replace(new, usage=usage, extra=added.extra)


def _theme(stored: Theme, added: Theme) -> Theme:
    new = {name: value for name in _ADDED if (value := getattr(added, name)) is not None}
    return msgspec.structs.replace(stored, more=stored.more | added.more, **new)


def _quality(stored: Profile, added: Profile, *, shares: tuple[int, int]) -> QualityAssessment:
    """What was answered anew, and what follows from the themes; completeness is the mean over the stages."""
    old, new = stored.quality_assessment, added.quality_assessment
    diversity = old.diversity
    if added.overlap_analysis is not None and stored.overlap_analysis is None:
        diversity *= len(added.overlap_analysis.unique_themes) / len(stored.themes)
    before, more = shares
    completeness = (old.completeness * before + new.completeness * more) / (before + more)
    return QualityAssessment(
        diversity=round(diversity, 4),
        coverage=old.coverage,
        completeness=round(completeness, 4),
        quality=old.quality if new.quality is None else new.quality,
        overall=old.overall if new.overall is None else new.overall,
        recommendations=old.recommendations if new.recommendations is None else new.recommendations,
    )
