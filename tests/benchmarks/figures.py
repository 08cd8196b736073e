"""What benchmarks say: each figure as its median, lowest and highest value."""

import statistics
from collections.abc import Sequence


def tell(case: str, what: str, values: Sequence[float], unit: str) -> None:
    """Print the median of what was measured in turns, and from where to where."""
    middle, low, high = statistics.median(values), min(values), max(values)
    spread = f" ({low:.4g} to {high:.4g})" if len(values) > 1 else ""
    print(f"{case}: {what}: {middle:.4g} {unit}{spread}")
