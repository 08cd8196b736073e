"""A job's short id: the last part of its id, or any beginning of either that no other job has."""

import re
from collections.abc import Iterable
from typing import Final

from tasks.errors import JobNotFoundError

#: Characters that a short id needs at least.
MIN_CHARACTERS: Final = 4
MAX_NAMED: Final = 5
_WHOLE: Final = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


def short_id(job_id: str) -> str:
    return job_id.rpartition("-")[2] if is_whole(job_id) else job_id


def short_ids(job_ids: Iterable[str]) -> dict[str, str]:
    """Each id with its short one; with itself where two would be the same."""
    found: dict[str, list[str]] = {}
    for job_id in job_ids:
        found.setdefault(short_id(job_id), []).append(job_id)
    return {job_id: short if len(same) == 1 else job_id for short, same in found.items() for job_id in same}


def is_whole(text: str) -> bool:
    """Whether a text needs no look at the jobs that there are."""
    return len(text) < MIN_CHARACTERS or _WHOLE.fullmatch(text) is not None


def the_one(text: str, job_ids: Iterable[str]) -> str | None:
    """The job that a text means; None where it means none. Raises JobNotFoundError: it means several."""
    found = [one for one in job_ids if one.startswith(text) or short_id(one).startswith(text)]
    if text in found:
        return text
    if len(found) > 1:
        newest = ", ".join(sorted(found, reverse=True)[:MAX_NAMED])
        raise JobNotFoundError(f"{text!r} may be any of {len(found)} jobs: {newest}{', …' * (len(found) > MAX_NAMED)}")
    return found[0] if found else None
