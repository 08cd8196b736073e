r"""Strings that match a simple regular expression: the sandbox's answer to JSON Schema's `pattern`.

Handles literals, escapes (`\d \w \s` and their opposites), classes, groups, alternation, the quantifiers
and the anchors. Lookaround and back references raise `PatternError`.
"""

import random
import string
from collections.abc import Callable
from typing import Final

#: Draws one matching string.
Draw = Callable[[random.Random], str]

#: How often an open quantifier (`*`, `+`, `{2,}`) repeats beyond its minimum, at most.
OPEN_REPEATS: Final = 4

_DIGITS = string.digits
_WORD = string.ascii_letters + string.digits + "_"
_BLANK = " \t"
_PRINTABLE = string.ascii_letters + string.digits + string.punctuation + " "
_ESCAPED_CLASSES: Final = {"d": _DIGITS, "w": _WORD, "s": _BLANK}
_ESCAPED_LITERALS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


class PatternError(ValueError):
    """This regular expression is beyond the simple ones that the sandbox can match."""


def compile_pattern(pattern: str) -> Draw:
    """Make the function that draws strings which match `pattern`.

    Raises:
        PatternError: the pattern uses something that is not handled.
    """
    return _Parser(pattern).whole()


class _Parser:
    """A recursive-descent parser; each method consumes its part and returns a drawing function."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def whole(self) -> Draw:
        draw = self._alternation()
        if self._at < len(self._text):
            raise PatternError(f"unbalanced ')' in {self._text!r}")
        return draw

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._peek()
        if not char:
            raise PatternError(f"{self._text!r} ends too soon")
        self._at += 1
        return char

    def _alternation(self) -> Draw:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._take()
            branches.append(self._sequence())
        return lambda rng: rng.choice(branches)(rng)

    def _sequence(self) -> Draw:
        parts: list[Draw] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._quantified())
        return lambda rng: "".join(part(rng) for part in parts)

    def _quantified(self) -> Draw:
        atom = self._atom()
        bounds = self._bounds()
        if bounds is None:
            return atom
        low, high = bounds
        if self._peek() == "?":  # lazy: matches the same strings
            self._take()
        return lambda rng: "".join(atom(rng) for _ in range(rng.randint(low, high)))

    def _bounds(self) -> tuple[int, int] | None:
        mark = self._peek()
        if mark and mark in "*+?":
            self._take()
            return {"*": (0, OPEN_REPEATS), "+": (1, 1 + OPEN_REPEATS), "?": (0, 1)}[mark]
        if mark != "{":
            return None
        end = self._text.find("}", self._at)
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        if end < 0 or not low.isdigit() or not (high.isdigit() or not high):
            raise PatternError(f"unreadable quantifier in {self._text!r}")
        self._at = end + 1
        least = int(low)
        if not comma:
            return least, least
        return least, int(high) if high else least + OPEN_REPEATS

    def _atom(self) -> Draw:
        char = self._take()
        if char == "(":
            return self._group()
        if char == "[":
            return _one_of(self._class())
        if char == ".":
            return _one_of(_PRINTABLE)
        if char in "^$":
            return lambda _: ""
        if char == "\\":
            return _one_of(self._escape())
        if char in "*+?{":
            raise PatternError(f"nothing to repeat in {self._text!r}")
        return _one_of(char)

    def _group(self) -> Draw:
        if self._text.startswith("?:", self._at):
            self._at += 2
        elif self._peek() == "?":
            raise PatternError(f"lookaround and named groups are not handled: {self._text!r}")
        inner = self._alternation()
        if self._take() != ")":
            raise PatternError(f"unbalanced '(' in {self._text!r}")
        return inner

    def _escape(self) -> str:
        char = self._take()
        if char.lower() in _ESCAPED_CLASSES:
            members = _ESCAPED_CLASSES[char.lower()]
            return members if char.islower() else "".join(sorted(set(_PRINTABLE) - set(members)))
        if char.isalnum():
            if char not in _ESCAPED_LITERALS:
                raise PatternError(f"\\{char} is not handled: {self._text!r}")
            return _ESCAPED_LITERALS[char]
        return char

    def _class(self) -> str:
        negated = self._peek() == "^"
        if negated:
            self._take()
        members: list[str] = []
        while (char := self._take()) != "]":
            start = self._escape() if char == "\\" else char
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._take()
                last = self._take()
                end = self._escape() if last == "\\" else last
                if len(start) != 1 or len(end) != 1 or start > end:
                    raise PatternError(f"unreadable range in {self._text!r}")
                members.extend(map(chr, range(ord(start), ord(end) + 1)))
            else:
                members.extend(start)
        allowed = sorted(set(_PRINTABLE) - set(members)) if negated else members
        if not allowed:
            raise PatternError(f"an empty class in {self._text!r}")
        return "".join(allowed)


def _one_of(members: str) -> Draw:
    return lambda rng: rng.choice(members)
