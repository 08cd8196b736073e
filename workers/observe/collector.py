"""The garbage collector of a long-lived process that makes many short-lived objects."""

import gc
from typing import Final

#: Objects made, and collections of the younger generation, after which each generation is collected.
COLLECT_AFTER: Final = (50_000, 20, 50)


def calm_collector() -> None:
    """Spare what has been built from the garbage collector, and let it look less often.

    Nothing here makes cycles in bulk, and every request or row makes many short-lived objects: with the defaults the
    collector takes an eighth of the CPU of a call (tests/benchmarks/test_hot_path.py).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
