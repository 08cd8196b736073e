"""What the data file of the package genai-prices calls, by its names, made of our shapes.

The package's own types are pydantic's: importing them costs a process 25 MB and 0.2 s of CPU time. Its data file
begins with `from .types import *`: read as a module of this folder (`tasks.prices.sources`), it takes these instead.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from tasks.prices import shapes

__all__ = (
    "ArrayMatch",
    "ClauseAnd",
    "ClauseContains",
    "ClauseEndsWith",
    "ClauseEquals",
    "ClauseOr",
    "ClauseRegex",
    "ClauseStartsWith",
    "ConditionalPrice",
    "ModelInfo",
    "ModelPrice",
    "PriceVariant",
    "Provider",
    "StartDateConstraint",
    "Tier",
    "TieredPrices",
    "TimeOfDateConstraint",
    "UsageExtractor",
    "UsageExtractorMapping",
)


def _known(kind: type[msgspec.Struct]) -> Callable[..., Any]:
    names = kind.__struct_fields__
    return lambda *values, **fields: kind(*values, **{name: fields[name] for name in names if name in fields})


def _nothing(**_: Any) -> None: ...


Provider, ModelInfo, ConditionalPrice = _known(shapes.Provider), _known(shapes.Model), _known(shapes.Conditional)
ModelPrice, TieredPrices, Tier = dict, shapes.Tiered, shapes.Tier
StartDateConstraint = TimeOfDateConstraint = shapes.Constraint
ClauseEquals = ClauseStartsWith = ClauseEndsWith = ClauseContains = ClauseRegex = ClauseOr = ClauseAnd = shapes.Match
#: Of other ways to ask; bodies are read in `workers.llm.endpoints.usage`.
PriceVariant = UsageExtractor = UsageExtractorMapping = ArrayMatch = _nothing
