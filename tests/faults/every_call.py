"""Every call of a small job fails once in every way: `scripts/soak --every-call [PART | MOMENT...]`.

A PART from 0 to 1 takes that part of the moments, at random but always the same; MOMENTs are written as a failed run
prints them. The method is SQLite's (sqlite.org/testing.html, its tests of out-of-memory and I/O errors).
"""

import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests.faults.lab import MODES, Kind, Lab, Moment, Verdict


def moments(census: Mapping[tuple[Kind, str], int]) -> list[Moment]:
    """Every call of a run with every way to fail."""
    return [
        Moment(kind, role, nth, mode)
        for (kind, role), count in census.items()
        for nth in range(1, count + 1)
        for mode in MODES[kind]
    ]


def tried(lab: Lab, chosen: Iterable[Moment]) -> Iterator[tuple[Moment, Verdict]]:
    """Run each."""
    for moment in chosen:
        yield moment, lab.run(moment)


def main(arguments: list[str]) -> int:
    """Run what was asked for; 1 when a row was lost, double or failed, or a job got stuck."""
    in_batches = arguments[:1] == ["--batches"]
    arguments = arguments[in_batches:]
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder) / "lab", in_batches=in_batches) as lab:
        chosen = _chosen(lab, arguments)
        began, bad = time.monotonic(), 0
        summary: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for number, (moment, verdict) in enumerate(tried(lab, chosen), 1):
            _count(summary[f"{moment.kind} {moment.role}", moment.mode.value], verdict)
            bad += not verdict.is_good
            if not verdict.is_good or (verdict.is_dear and moment.role != "producer"):
                print(f"{moment}: {verdict}", flush=True)
            if number % 20 == 0 or number == len(chosen):
                pace = (time.monotonic() - began) / number
                print(f"{number} of {len(chosen)}, {bad} bad, {pace:.2f} s each", flush=True)
    _print(summary)
    return 1 if bad else 0


def _chosen(lab: Lab, arguments: list[str]) -> list[Moment]:
    if arguments and "/" in arguments[0]:
        return [Moment.of(text) for text in arguments]
    census = lab.census()
    if arguments[:1] == ["http"]:
        census, arguments = {("http", "worker"): census["http", "worker"]}, arguments[1:]
    print({f"{kind} {role}": count for (kind, role), count in census.items()}, flush=True)
    every = moments(census)
    if not arguments:
        return every
    # Seeded, and no moment of a smaller part is missing in a larger one.
    random.Random(0).shuffle(every)
    return every[: round(float(arguments[0]) * len(every))]


def _count(counts: Counter[str], verdict: Verdict) -> None:
    counts["moments"] += 1
    counts["not reached"] += not verdict.happened
    counts["stuck"] += verdict.stuck
    counts["lost"] += verdict.lost
    counts["double"] += verdict.double
    counts["failed"] += verdict.failures
    counts["wrong counters"] += verdict.wrong_counters
    counts["calls unbooked"] += max(0, verdict.unbooked)
    counts["booked twice"] += max(0, -verdict.unbooked)


def _print(summary: Mapping[tuple[str, str], Counter[str]]) -> None:
    columns = ("moments", "not reached", "stuck", "lost", "double", "failed", "wrong counters", "calls unbooked",
               "booked twice")  # fmt: skip
    print(f"\n{'calls of':18} {'how':24} " + " ".join(f"{name:>14}" for name in columns))
    for (calls, mode), counts in sorted(summary.items()):
        print(f"{calls:18} {mode:24} " + " ".join(f"{counts[name]:14}" for name in columns))
    total = sum(summary.values(), Counter[str]())
    print(f"{'together':18} {'':24} " + " ".join(f"{total[name]:14}" for name in columns))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
