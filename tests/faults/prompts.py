"""Prompts of two stages: a destination costs two calls instead of sixteen, so that a run has few places to fail at."""

from pathlib import Path
from typing import Final

#: LLM calls that one destination costs.
CALLS: Final = 2
_FILES: Final = {
    "system.md": "You find travel themes.\n",
    "discover.culture.md": """---
stage: discover.culture
asks: new themes
count: [2, 3]
max_tokens: 600
---
Find 2 to 3 travel themes of the kind **culture** for the destination below.
""",
    "analyse.confidence.md": """---
stage: analyse.confidence
asks: each theme
needs: [discover.*]
max_tokens: 400
fields:
  confidence: {type: number, minimum: 0, maximum: 1}
---
For each numbered theme of the destination below, say how sure you are of it.
""",
}


def write(folder: Path) -> Path:
    """Write them; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in _FILES.items():
        (folder / name).write_text(text)
    return folder
