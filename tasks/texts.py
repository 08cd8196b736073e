"""Texts from outside, made fit for what they pass through: a database, a terminal, a page, a prompt."""

import re
from typing import Any, Final

#: Control characters but tab and line feed, the marks that turn the direction of text, and lone surrogates.
_UNFIT: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


def is_fit(text: str) -> bool:
    """Whether a text holds nothing that `cleaned` takes out."""
    return _UNFIT.search(text) is None


def cleaned(text: str) -> str:
    """A text without control characters, which are left out; a lone surrogate becomes U+FFFD."""
    if text.isprintable() or is_fit(text):
        return text
    return _UNFIT.sub("", _SURROGATES.sub("\ufffd", text))


def clean_line(text: str) -> str:
    """A clean text as one line: a name."""
    return text if text.isprintable() else " ".join(cleaned(text).split())


def cleaned_value(value: Any) -> Any:
    """A JSON value whose texts and keys are `cleaned`; the same object where all of them were."""
    if isinstance(value, str):
        return cleaned(value)
    if isinstance(value, list):
        return [cleaned_value(item) for item in value]
    if isinstance(value, dict):
        return {cleaned(key): cleaned_value(item) for key, item in value.items()}
    return value


def one_line(text: str, characters: int) -> str:
    """The beginning of a text as one clean line of at most so many `characters`."""
    return " ".join(cleaned(text[: 4 * characters]).split())[:characters]
