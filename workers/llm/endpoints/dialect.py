"""What a server has taught of how it wants to be asked: the response format, and the parameters that it takes."""

from dataclasses import dataclass, field
from typing import Final

import msgspec

from workers.llm.endpoints.faults import Parameters
from workers.llm.endpoints.reply import AnswerFormat

#: Invalid answers after which a format that never gave a valid one is given up.
UNUSABLE_ANSWERS: Final = 2
#: 500s in a row after which a format that has never worked is given up.
UNEXPLAINED_ERRORS: Final = 3


@dataclass(slots=True)
class Dialect:
    format: AnswerFormat = AnswerFormat.JSON_SCHEMA
    parameters: Parameters = field(default_factory=Parameters)
    #: 500s in a row without a word about the format.
    unexplained: int = 0
    #: Invalid answers in a format that has never given a valid one.
    unusable: int = 0
    #: Formats that have given a valid answer: a later error is not the format's fault.
    proven: set[AnswerFormat] = field(default_factory=set)

    def refused(self, style: AnswerFormat) -> None:
        """Use a weaker format than this one; never step back to a stronger one."""
        self.format = max(self.format, AnswerFormat(style + 1))

    def judge(self, style: AnswerFormat, *, valid: bool) -> None:
        """Learn from a first answer: a server may accept a response format and ignore it.

        After a few unusable answers, and none that was valid, the schema is put into the prompt. A re-ask shows the
        schema in any case, and proves nothing.
        """
        if valid:
            self.proven.add(style)
            self.unusable = 0
        elif style is not AnswerFormat.TEXT and style not in self.proven and style is self.format:
            self.unusable += 1
            if self.unusable >= UNUSABLE_ANSWERS:
                self.unusable = 0
                self.format = AnswerFormat(style + 1)

    def failed(self, status: int, style: AnswerFormat) -> bool:
        """Whether an error without a word about it is the format's: the third 500 in a row on one that never worked.

        Some servers cannot compile a schema.
        """
        if status not in {500, 501} or style in self.proven:
            return False
        self.unexplained += 1
        if self.unexplained < UNEXPLAINED_ERRORS:
            return False
        self.unexplained = 0
        if style is AnswerFormat.TEXT:
            # No format works: then it was never the format.
            self.format = AnswerFormat.JSON_SCHEMA
            return False
        return True

    def mark(self) -> str:
        """How a request is asked now, in JSON."""
        learnt = self.parameters
        return msgspec.json.encode(
            {"format": self.format, "limit": learnt.limit_name, "dropped": sorted(learnt.dropped),
             "ceilings": learnt.ceilings}
        ).decode()  # fmt: skip

    def is_as(self, mark: str, stage: str) -> bool:
        """Whether a stage's requests are still asked as they were when `mark` was made."""
        then, now = msgspec.json.decode(mark), msgspec.json.decode(self.mark())
        for one in (then, now):
            one["ceilings"] = one["ceilings"].get(stage)
        return bool(then == now)
