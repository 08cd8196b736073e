"""A provider's cache of prompt beginnings: what was asked before costs less, in blocks and from a length on."""

from typing import Final

from workers.sandbox.chat import CHARACTERS_PER_TOKEN

BLOCK_TOKENS: Final = 64


class Prefixes:
    """Keeps the beginnings of prompts that were answered; `least` is the shortest one in tokens, 0 keeps none."""

    def __init__(self, least: int) -> None:
        self._least = least
        self._known: set[int] = set()

    def cached_tokens(self, text: str) -> int:
        """How many tokens of a prompt's beginning are known."""
        found = 0
        for tokens, digest in self._blocks(text):
            if digest not in self._known:
                break
            found = tokens
        return found if found >= self._least else 0

    def keep(self, text: str) -> None:
        if self._least:
            self._known.update(digest for _, digest in self._blocks(text))

    @staticmethod
    def _blocks(text: str) -> list[tuple[int, int]]:
        """The tokens until the end of each whole block, and what tells its beginning from others."""
        size = BLOCK_TOKENS * CHARACTERS_PER_TOKEN
        return [(end // CHARACTERS_PER_TOKEN, hash(text[:end])) for end in range(size, len(text) + 1, size)]
