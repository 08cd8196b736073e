"""A remote-control command of the worker: `themes worker-memory` asks with it which lines keep memory."""

from typing import Any, Final

from celery.worker.control import inspect_command

from workers.observe.leaks import EVERY_SECONDS, WATCH

#: What the command is called on the wire.
COMMAND: Final = "themes_memory"


@inspect_command(  # type: ignore[untyped-decorator]
    name=COMMAND, args=[("action", str), ("every_seconds", float)], signature="start|compare|stop [SECONDS]"
)
def themes_memory(
    state: Any, action: str = "compare", every_seconds: float = EVERY_SECONDS, **_: Any
) -> dict[str, Any]:
    """Trace allocations, tell which lines have grown, or stop."""
    del state
    if action == "start":
        return WATCH.start(every_seconds)
    if action == "stop":
        return WATCH.stop()
    return WATCH.compare()
