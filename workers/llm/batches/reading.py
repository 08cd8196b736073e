"""What a line of a batch's results means: an answer and its bill, or why there is none."""

import logging
import math
from http import HTTPStatus

from config.endpoints import BATCH
from tasks.errors import EndpointDownError, EndpointRefusedError
from tasks.jobs.budget import NANO
from workers.llm.batches.bills import encoded
from workers.llm.batches.lines import LineEnd
from workers.llm.batches.questions import TRIES, Ending, Line, Settled
from workers.llm.billing import Billing
from workers.llm.endpoints.client import ChatClient
from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.reply import AnsweredRefusalError, AnswerFormat, RawAnswer, read_reply
from workers.llm.endpoints.route import Route
from workers.observe.profiler import PerformanceProfiler

log = logging.getLogger("themes.batches")


class Reader:
    """Reads the results of the batches of one route. `profiler` counts the tokens."""

    def __init__(self, route: Route, billing: Billing, profiler: PerformanceProfiler) -> None:
        self._route = route
        self._billing = billing
        self._profiler = profiler

    def __repr__(self) -> str:
        return f"<Reader {self._route!r}>"

    @property
    def client(self) -> ChatClient:
        return self._route.client

    def learnt(self, result: LineEnd, prompt: Prompt | None, mark: str) -> bool:
        """Whether a refused line is to be asked in another way, which the client knows from now on.

        `mark` is how the client asked when the batch was made: what others have taught it since counts too.
        """
        if prompt is None or not result.body or not mark:
            return False
        return self.client.learn(result.status, result.body, prompt, mark)

    def answered(self, result: LineEnd, *, prompt_characters: int) -> Settled | None:
        """A line with an answer, as it is booked; None where there is none in it."""
        if result.status != HTTPStatus.OK:
            return None
        try:
            raw = read_answer(result.body, self._route.client.model, prompt_characters=prompt_characters)
        except (EndpointDownError, EndpointRefusedError) as exc:
            log.warning("action=batch_answer key=%s… is no answer: %s", result.key[:12], exc)
            return None
        bill = self._billing.bill(raw, self._route.model, self._route.client, tier=BATCH)
        self._route.count_tokens(self._profiler.counters, raw.tokens.prompt, raw.tokens.completion)
        cost = 0 if bill.cost_usd is None else math.ceil(round(bill.cost_usd * NANO, 3))
        return Settled(result.key, "answered", result.body, cost, encoded(bill), bill.tier_saved_usd)


def read_answer(body: bytes, model: str, *, prompt_characters: int) -> RawAnswer:
    """The answer in a result's body; a refusal of the model is one too. Raises as `read_reply`, but for that."""
    try:
        return read_reply(body, model=model, style=AnswerFormat.JSON_SCHEMA, prompt_characters=prompt_characters)
    except AnsweredRefusalError as exc:
        return exc.answer


def without_answer(line: Line, *, is_over: bool, is_late: bool) -> Ending:
    """What becomes of a line that was not answered: its job may be over, its deadline past, its tries used up."""
    if is_over:
        return "gone"
    if is_late or line.question is None or line.tries + 1 >= TRIES:
        return "late"
    return "again"
