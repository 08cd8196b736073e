"""Asks the LLM's endpoints once before work is given to them, beside what a command does anyway."""

import threading
from typing import TYPE_CHECKING, Final

from redis import Redis

from config.settings import Settings
from scripts.lib.terminal import warn
from tasks import worker_reports as fleet
from tasks.errors import ConfigError
from tasks.texts import count

if TYPE_CHECKING:
    from workers.doctor.llm import Probed

#: Seconds that are waited for the answers; a name server that hangs takes longer.
WAIT_SECONDS: Final = 8.0


class LlmProbe:
    """Asks in a thread; with `redis` not where its workers ask other endpoints than these settings name."""

    def __init__(self, settings: Settings, redis: Redis | None = None) -> None:
        self._settings = settings
        self._redis = redis
        self._found: list[Probed] = []
        self._thread = threading.Thread(target=self._ask, name="llm probe", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        from workers.llm.endpoints.registry import endpoints
        from workers.llm.limits.limiter import endpoint_digest

        try:
            ours = {
                endpoint_digest(endpoint.base_url, endpoint.name_of(self._settings.llm.model or ""))
                for endpoint in endpoints(self._settings.llm)
            }
            theirs = fleet.endpoint_digests(self._redis) if self._redis else set()
            if not theirs or ours & theirs:
                # Late: a third of a second that the command need not wait for.
                from workers.doctor.llm import probe

                self._found = probe(self._settings)
        except ConfigError:
            pass  # no LLM is set here: the workers have settings of their own

    def warn(self) -> None:
        self._thread.join(WAIT_SECONDS)
        for line in dict.fromkeys(one.problem for one in self._found if one.problem):
            warn(f"the LLM does not answer: {line}")
        if calls := sum(one.calls for one in self._found):
            warn(f"asked the LLM whether it answers: {count(calls, 'call')}, counted in no job")

    def refuse(self) -> None:
        """As `warn`; raises ConfigError where a model is refused everywhere."""
        self._thread.join(WAIT_SECONDS)
        for model in {one.model for one in self._found}:
            asked = [one for one in self._found if one.model == model]
            if all(one.is_refused for one in asked):
                raise ConfigError(f"nothing was enqueued, the LLM refuses: {asked[0].problem}; or use --force")
        self.warn()
