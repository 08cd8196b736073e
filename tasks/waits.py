"""What a worker waits for as a whole: one value, formatted in the same words everywhere.

A worker's heartbeat carries it as JSON, and so does the key of an endpoint's cool-down, for processes that start later.
"""

import re
import time
from dataclasses import asdict, dataclass
from typing import Final, Literal

import msgspec

from tasks.texts import duration, one_line

#: `server_limit`: the server said "later". `own_limit`: the configured or learnt rate. `away`: the server cannot be
#: reached. `errors`: it answers with errors. `batch`: a provider has the
#: questions, or is to get them. `other`: as `said` says.
WaitKind = Literal["server_limit", "own_limit", "away", "errors", "batch", "other"]
#: Characters of what a server said that are kept.
SAID_CHARACTERS: Final = 200
#: The longest time that is shown: a worker of another version may say anything.
MAX_SHOWN_SECONDS: Final = 360_000.0
#: What differs from try to try in a server's message: numbers, ids, times.
_VARYING: Final = re.compile(r"[0-9a-zA-Z-]*[0-9][0-9a-zA-Z.:-]*")


@dataclass(frozen=True, slots=True)
class Wait:
    """What is waited for, and the source that said so. Times are seconds since 1970."""

    kind: WaitKind
    #: The endpoint's name in the settings (`llm` where there is only one).
    endpoint: str
    since: float
    #: When the wait ends; None where that depends on a call under way.
    until: float | None
    #: What the server said, or which limit it is.
    said: str
    #: The header that set `until`, as it was sent; empty where the pause is our own.
    header: str = ""
    #: When one call tries whether the wait is over; None where nothing is tried before `until`.
    next_try: float | None = None

    @property
    def reason(self) -> str:
        """The same for as long as the same thing is waited for, whatever the numbers in a message."""
        return f"{self.kind} {self.endpoint} {_VARYING.sub('#', self.said)}"

    def format(self, now: float | None = None) -> str:
        """One clause for people, with the time that is left."""
        now = time.time() if now is None else now
        tries = [at for at in (self.next_try, self.until) if at is not None]
        when = f", next try in {_left(min(tries), now)}" if tries else ", a try is under way"
        if self.until is not None and self.next_try is not None and self.next_try < self.until:
            when += f", the wait ends in {_left(self.until, now)}"
        header = f" (it said {self.header})" if self.header else ""
        return {
            "server_limit": f"rate limited by the server {self.endpoint} ({self.said}){when}{header}",
            "own_limit": f"rate limit of {self.endpoint} ({self.said}){when}",
            "away": f"the server {self.endpoint} is away ({self.said}){when}",
            "errors": f"the server {self.endpoint} answers with errors ({self.said}){when}",
            "batch": self.said,
            "other": self.said,
        }[self.kind]

    def encode(self) -> bytes:
        return msgspec.json.encode(asdict(self))

    @classmethod
    def decode(cls, text: str | bytes | None) -> "Wait | None":
        """A wait out of JSON; None for nothing. Text that is no wait is one of the kind `other`."""
        if not text:
            return None
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            said = text if isinstance(text, str) else text.decode("utf-8", "replace")
            return cls("other", "", 0.0, None, one_line(said, SAID_CHARACTERS))


def _left(at: float, now: float) -> str:
    return duration(min(MAX_SHOWN_SECONDS, max(0.0, at - now)))
