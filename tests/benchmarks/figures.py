"""What benchmarks say: each figure is printed, and kept for `scripts/bench --json FILE`."""

import statistics
from collections.abc import Sequence
from typing import Any, Final

#: What this run has measured, in order.
KEPT: Final[list[dict[str, Any]]] = []


def tell(case: str, what: str, values: Sequence[float], unit: str, **also: Any) -> None:
    """Print the median of what was measured in turns and from where to where, and keep it; `also` says how."""
    middle, low, high = statistics.median(values), min(values), max(values)
    spread = f" ({low:.4g} to {high:.4g})" if len(values) > 1 else ""
    print(f"{case}: {what}: {middle:.4g} {unit}{spread}")
    figure = {"case": case, "what": what, "median": _short(middle), "low": _short(low), "high": _short(high)}
    KEPT.append(figure | {"unit": unit, "rounds": len(values)} | also)


def _short(number: float) -> float:
    return float(f"{number:.4g}")
