"""Questions to running workers by Celery's remote control."""

from typing import Any

from celery import Celery


def ask(
    app: Celery, names: list[str], command: str, *, seconds: float, awaited: int | None = None, **arguments: Any
) -> dict[str, Any]:
    """The workers' answers by name, as soon as `awaited` of them (by default all) have come, or after `seconds`."""
    if not names:
        return {}
    replies = app.control.broadcast(
        command, arguments=arguments, destination=names, reply=True, timeout=seconds,
        limit=len(names) if awaited is None else awaited,
    )  # fmt: skip
    return {name: answer for reply in replies or [] for name, answer in reply.items()}
