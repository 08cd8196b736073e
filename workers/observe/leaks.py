"""Which lines of code keep more and more memory: tracemalloc, on demand, in a process that runs.

On, every allocation is traced: the process is several times slower until `stop`. A thread samples what each line holds;
`compare` returns what has grown since `start`, and which lines grew all the time: the suspects.
"""

import threading
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from workers.observe import trend

#: Seconds between two looks, unless told otherwise.
EVERY_SECONDS: Final = 5.0
#: Lines of which the course is kept, and lines told.
LINES_KEPT: Final = 200
LINES_TOLD: Final = 15
#: Bytes that a line must have gained to be called a suspect.
LEAST_BYTES: Final = 64 * 1024
#: Looks that are kept: when there are more, every second one goes.
LOOKS_KEPT: Final = 60
#: Where our packages are.
_ROOT: Final = Path(__file__).parents[2]
#: What the tracing itself holds.
_IGNORED: Final = frozenset({tracemalloc.__file__, __file__})


@dataclass(frozen=True, slots=True)
class LineGrowth:
    """What a line has allocated and still holds, now and more than at the first look."""

    file: str
    line: int
    bytes_held: int
    bytes_grown: int
    #: Bytes an hour when it has grown all the time, else 0.
    bytes_per_hour: float
    #: Why it may grow, where that is known.
    reason: str = ""

    @property
    def is_suspect(self) -> bool:
        return self.bytes_per_hour > 0 and self.bytes_grown >= LEAST_BYTES and not self.reason


class LeakWatch:
    """Traces the allocations of this process between `start` and `stop`. May be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._looks: list[tuple[float, dict[tuple[str, int], int]]] = []
        #: File, as it is shown -> why its lines may grow.
        self._reasons: dict[str, str] = {}

    @property
    def is_on(self) -> bool:
        return self._thread is not None

    def expect(self, file: str, reason: str) -> None:
        """The lines of a file may grow, within a bound of their own: they are told with the reason, and not suspected.

        What goes beyond that bound the trend of the whole memory finds (workers/observe/samples.py).
        """
        self._reasons[file] = reason

    def start(self, every_seconds: float = EVERY_SECONDS) -> dict[str, Any]:
        """Begin to trace; says so. Once begun, another start changes nothing."""
        with self._lock:
            if self._thread is None:
                tracemalloc.start(1)
                # What was there before is not traced: at first nothing is held.
                self._looks = [(time.monotonic(), {})]
                self._stopping.clear()
                self._thread = threading.Thread(
                    target=self._watch, args=(every_seconds,), name="themes-leaks", daemon=True
                )
                self._thread.start()
        return {"tracing": True}

    def compare(self) -> dict[str, Any]:
        """What has grown since the start: the lines by growth, the suspects first."""
        if self._thread is None:
            return {"tracing": False, "error": "start first: `themes worker-memory start`"}
        self._look()
        with self._lock:
            looks = list(self._looks)
        lines = sorted(grown(looks, self._reasons), key=lambda line: (not line.is_suspect, -line.bytes_grown))[
            :LINES_TOLD
        ]
        return {
            "tracing": True,
            "seconds": round(looks[-1][0] - looks[0][0], 1),
            "looks": len(looks),
            "suspects": [asdict(line) for line in lines if line.is_suspect],
            "lines": [asdict(line) for line in lines],
        }

    def stop(self) -> dict[str, Any]:
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping.set()
            thread.join()
            tracemalloc.stop()
            self._looks.clear()
        return {"tracing": False}

    def _watch(self, every_seconds: float) -> None:
        took = 0.0
        # A look holds everything else up: at most half of the time goes into it.
        while not self._stopping.wait(max(every_seconds, took)):
            began = time.perf_counter()
            self._look()
            took = time.perf_counter() - began

    def _look(self) -> None:
        held: dict[tuple[str, int], int] = {}
        for one in tracemalloc.take_snapshot().statistics("lineno"):
            frame = one.traceback[0]
            if frame.filename not in _IGNORED and not frame.filename.startswith("<"):
                held[frame.filename, frame.lineno] = one.size
                if len(held) >= LINES_KEPT:
                    break
        with self._lock:
            self._looks.append((time.monotonic(), held))
            if len(self._looks) > LOOKS_KEPT:
                del self._looks[1::2]


def grown(looks: Sequence[tuple[float, Mapping[tuple[str, int], int]]], reasons: Mapping[str, str]) -> list[LineGrowth]:
    """How each line that holds something now has grown over the looks; nothing is said of a line that shrank."""
    first, last = looks[0][1], looks[-1][1]
    lines: list[LineGrowth] = []
    for place, size in last.items():
        more = size - first.get(place, 0)
        if more > 0:
            course = [(at, float(held.get(place, 0))) for at, held in looks]
            hourly = round(trend.growth(course) * 3600, 1)
            file = _shown(place[0])
            lines.append(LineGrowth(file, place[1], size, more, hourly, reasons.get(file, "")))
    return lines


def _shown(filename: str) -> str:
    """A file's name as people know it: from our packages on, or its last three parts."""
    path = Path(filename)
    if path.is_relative_to(_ROOT):
        return str(path.relative_to(_ROOT))
    parts = path.parts
    return "/".join(parts[-3:]) if len(parts) > 3 else filename  # noqa: PLR2004  # package, module


#: The one of this process: tracemalloc is one too.
WATCH: Final = LeakWatch()
