"""Celery's remote control of our workers: `celery -A workers.app inspect themes_settings`, `… control themes_tune K=V`.

`pool_grow` and `pool_shrink`, which Flower has buttons for, change `worker_pool_size`: Celery's own know no threads.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from celery.worker.control import Panel

from config.errors import ThemesError
from workers.observe.leaks import EVERY_SECONDS, WATCH
from workers.worker.tuning import ATTRIBUTE, Tuner

_Command = TypeVar("_Command", bound=Callable[..., dict[str, Any]])


def _command(**options: Any) -> Callable[[_Command], _Command]:
    """Register a command with Celery, which is not typed; one of Celery's own is replaced."""
    register: Callable[[_Command], _Command] = Panel.register(**options)
    return register


@_command(
    name="themes_settings",
    help="Settings that can be changed while the worker runs, with their origin.",
    type="inspect",
)
def themes_settings(state: Any, **_: Any) -> dict[str, Any]:
    return {"ok": _tuner(state).values()}


@_command(
    name="themes_tune",
    variadic="changes",
    signature="[KEY=VALUE [KEY=VALUE […]]]",
    help="Change settings of the running worker; `themes tune` also keeps them for new ones.",
)
def themes_tune(state: Any, changes: list[str] | None = None, *, check: bool = False, **_: Any) -> dict[str, Any]:
    tuner = _tuner(state)
    return _answer(lambda: tuner.check(changes or []) if check else tuner.tune(changes or []))


@_command(name="themes_reset", help="Take back what was changed on the running worker.")
def themes_reset(state: Any, **_: Any) -> dict[str, Any]:
    return _answer(_tuner(state).reset)


@_command(name="pool_grow", args=[("n", int)], signature="[N=1]", help="N lanes more (worker_pool_size).")
def pool_grow(state: Any, n: int = 1, **_: Any) -> dict[str, Any]:
    return _answer(lambda: _tuner(state).resize(n))


@_command(name="pool_shrink", args=[("n", int)], signature="[N=1]", help="N lanes fewer (worker_pool_size).")
def pool_shrink(state: Any, n: int = 1, **_: Any) -> dict[str, Any]:
    return _answer(lambda: _tuner(state).resize(-n))


@_command(
    name="themes_memory",
    args=[("action", str), ("every_seconds", float)],
    signature="start|compare|stop [SECONDS]",
    type="inspect",
)
def themes_memory(_: Any, action: str = "compare", every_seconds: float = EVERY_SECONDS, **__: Any) -> dict[str, Any]:
    """Trace allocations, say which lines have grown, or stop."""
    if action == "start":
        return WATCH.start(every_seconds)
    return WATCH.stop() if action == "stop" else WATCH.compare()


def _tuner(state: Any) -> Tuner:
    tuner: Tuner = getattr(state.app, ATTRIBUTE)
    return tuner


def _answer(act: Any) -> dict[str, Any]:
    try:
        return {"ok": act()}
    except ThemesError as exc:
        return {"error": str(exc)}
