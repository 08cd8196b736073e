"""What came of many trials, fault by fault: `python -m tests.faults.table FILE`, with what FAULT_REPORT got."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any


def table(lines: list[dict[str, Any]]) -> str:
    """One row a fault; the seconds are those from the fault's end to the job's."""
    by_fault: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        by_fault[line["fault"]].append(line)
    rows = [
        f"{'fault':38} {'runs':>5} {'lost':>5} {'double':>6} {'calls not in the books':>24} {'seconds to the end':>20}"
    ]
    for fault, runs in by_fault.items():
        lost, double = (sum(run[name] for run in runs) for name in ("lost", "double"))
        unbooked, asked = (sum(run[name] for run in runs) for name in ("unbooked", "asked"))
        seconds = [run["recovered"] for run in runs]
        rows.append(
            f"{fault:38} {len(runs):5} {lost:5} {double:6} {f'{unbooked} of {asked}':>24} "
            f"{f'{median(seconds):.1f}, at most {max(seconds):.1f}':>20}"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))
