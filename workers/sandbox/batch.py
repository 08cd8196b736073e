"""What the sandbox LLM keeps of batches: its habits, files, and how far each batch is."""

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from config.errors import ConfigError

GRAMMAR: Final = (
    "KEY=VALUE,...: delay and window (seconds until all is answered, until it expires), lag (seconds until"
    " it is listed), share and line_errors (0 to 1), lost_uploads, lost_creates and busy_uploads (how many); or off"
)


class Habits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How this provider treats batches; `is_off`: it knows none.

    `share` of the lines are answered at all, of these `line_errors` by an error.

    Replies to the first `lost_uploads` and `lost_creates` are cut off after the deed; the first `busy_uploads` get 429.
    """

    delay: float = 1.0
    window: float = 86_400.0
    lag: float = 0.0
    share: float = 1.0
    line_errors: float = 0.0
    is_off: bool = False
    lost_uploads: int = 0
    lost_creates: int = 0
    busy_uploads: int = 0


def parse_habits(text: str) -> Habits:
    """Read `delay=5,line_errors=0.01`. Raises ConfigError."""
    if text.strip() == "off":
        return Habits(is_off=True)
    given = dict(option.strip().partition("=")[::2] for option in text.split(",") if option.strip())
    try:
        habits = msgspec.convert(given, Habits, strict=False)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"--batches {text}: {exc}; write {GRAMMAR}") from exc
    shares = (habits.share, habits.line_errors)
    if min(msgspec.structs.astuple(habits)) < 0 or max(shares) > 1:
        raise ConfigError(f"--batches {text}: no number is below 0, no share above 1; write {GRAMMAR}")
    return habits


class Line(msgspec.Struct, frozen=True):
    """One request of an input file."""

    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


class Asked(msgspec.Struct, frozen=True):
    """The body of `POST /v1/batches`."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


@dataclass
class File:
    """An uploaded file, or one with the answers of a batch."""

    id: str
    path: Path
    name: str
    purpose: str
    created: float = field(default_factory=time.time)

    def described(self) -> dict[str, Any]:
        size = self.path.stat().st_size
        return {
            "id": self.id, "object": "file", "bytes": size, "created_at": int(self.created), "filename": self.name,
            "purpose": self.purpose, "status": "processed", "expires_at": None,
        }  # fmt: skip


@dataclass
class Batch:
    """A batch and how far it is; `at` are the times of its states."""

    id: str
    asked: Asked
    status: str = "validating"
    at: dict[str, float] = field(default_factory=lambda: {"created": time.time()})
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self, status: str) -> None:
        self.status = status
        self.at[status] = time.time()

    def described(self, window_seconds: float) -> dict[str, Any]:
        states = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        times = {f"{name}_at": int(self.at[name]) if name in self.at else None for name in ("created", *states)}
        return times | {
            "id": self.id, "object": "batch", "endpoint": self.asked.endpoint, "status": self.status,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.asked.input_file_id, "completion_window": self.asked.completion_window,
            "output_file_id": self.output_file_id, "error_file_id": self.error_file_id,
            "expires_at": int(self.at["created"] + window_seconds), "metadata": self.asked.metadata,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
        }  # fmt: skip
