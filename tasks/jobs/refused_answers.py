"""The last answers of a job that could not be used, with their prompts, for a page that the settings allow.

A list in Redis, the newest first. It is the only place outside of the cache where the text of a prompt is kept.
"""

from typing import Any, Final

import msgspec

from tasks import keys
from tasks.storable import storable

#: Answers that are kept of a job, and characters of each text.
KEPT: Final = 20
MAX_CHARACTERS: Final = 8_000


class RefusedAnswer(msgspec.Struct, frozen=True):
    destination_id: str
    name: str
    stage: str
    #: Seconds since 1970.
    at: float
    reason: str
    prompt: str
    answer: str


def add(pipeline: Any, job_id: str, refused: RefusedAnswer) -> None:
    """Queue the commands that keep an answer, and let the oldest go."""
    cut = {
        name: text[:MAX_CHARACTERS] for name, text in msgspec.structs.asdict(refused).items() if isinstance(text, str)
    }
    entry = storable(msgspec.structs.asdict(refused) | cut)
    pipeline.lpush(keys.answers(job_id), msgspec.json.encode(entry))
    pipeline.ltrim(keys.answers(job_id), 0, KEPT - 1)
    pipeline.expire(keys.answers(job_id), keys.KEEP_SECONDS)


def decode(entries: list[bytes]) -> list[RefusedAnswer]:
    """The answers; an entry that is none of ours is left out."""
    found = []
    for entry in entries:
        try:
            found.append(msgspec.json.decode(entry, type=RefusedAnswer))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return found
