"""Asks the LLM's endpoints once before work is given to them, beside what a command does anyway."""

import sys
import threading
from typing import TYPE_CHECKING, Final

from redis import Redis

from config.settings import Settings
from tasks import worker_reports as fleet
from tasks.errors import ConfigError

if TYPE_CHECKING:
    from workers.doctor.llm import Probed

#: Seconds that are waited for the answers; a name server that hangs takes longer.
WAIT_SECONDS: Final = 8.0


class LlmProbe:
    """Asks from the start on; `warn` and `refuse` wait for what is said.

    With `redis`, nothing is asked where the workers that live there ask other endpoints than these settings name, such
    as the sandbox.
    """

    def __init__(self, settings: Settings, redis: Redis | None = None) -> None:
        self._settings = settings
        self._redis = redis
        self._found: list[Probed] = []
        # It must not keep the process.
        self._thread = threading.Thread(target=self._ask, name="llm probe", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        # Late: a third of a second that the command need not wait for.
        from workers.doctor.llm import probe
        from workers.llm.endpoints.registry import endpoints
        from workers.llm.limits.limiter import endpoint_digest

        try:
            ours = {
                endpoint_digest(endpoint.base_url, endpoint.name_of(self._settings.llm.model or ""))
                for endpoint in endpoints(self._settings.llm)
            }
            theirs = fleet.endpoint_digests(self._redis) if self._redis else set()
            if not theirs or ours & theirs:
                self._found = probe(self._settings)
        except ConfigError:
            pass  # no LLM is set here: the workers have settings of their own

    def warn(self) -> None:
        """Print what is wrong, and what was asked at a cost."""
        self._thread.join(WAIT_SECONDS)
        for line in dict.fromkeys(one.problem for one in self._found if one.problem):
            print(f"themes: the LLM does not answer: {line}", file=sys.stderr)
        if calls := sum(one.calls for one in self._found):
            plural = "" if calls == 1 else "s"
            print(f"themes: asked the LLM whether it answers: {calls} call{plural}, in no books", file=sys.stderr)

    def refuse(self) -> None:
        """As `warn`, but where a model is refused everywhere.

        Raises:
            ConfigError: no destination would get an answer.
        """
        self._thread.join(WAIT_SECONDS)
        for model in {one.model for one in self._found}:
            told = [one for one in self._found if one.model == model]
            if all(one.is_refused for one in told):
                raise ConfigError(f"nothing was enqueued, the LLM refuses: {told[0].problem}; or use --force")
        self.warn()
