"""Names that are none: what people and programs write where a name is missing.

1. What has no letter and no digit (`-`, `?`, `…`) stands for no name.
2. Neither do `PLACEHOLDERS`, in any case and width, and with any punctuation: `TBD`, `<null>`, `#N/A`.
3. `DOUBTFUL` words are names of places too (None in Italy, Nan in Thailand). Alone, they stand for no name; with a
   country, a region, coordinates, or a Wikidata or GeoNames id they are names. With punctuation (`N/A`, `(none)`) they
   never are.
"""

from typing import Final

from tasks.identity import normalise

#: Words for nothing, without blanks and punctuation.
PLACEHOLDERS: Final = frozenset({
    "null", "undefined", "unknown", "unnamed", "tbd", "tba", "tbc", "todo", "notavailable", "notapplicable", "notset",
    "noname", "missing", "unbekannt", "inconnu", "desconocido", "sconosciuto", "desconhecido", "onbekend",
})  # fmt: skip
#: Words for nothing that are names of places too.
DOUBTFUL: Final = frozenset({"none", "nan", "na", "nil"})
#: What spreadsheets and databases write for an error or nothing, with its punctuation.
_WRITTEN: Final = frozenset({
    "#ref!", "#value!", "#name?", "#div/0!", "#num!", "#null!", "#spill!", "#calc!", "#error!", "#n/a n/a", "\\n",
})  # fmt: skip
#: Characters of the longest of them, with blanks and punctuation.
_LONGEST: Final = 20
_ASCII_PUNCTUATION: Final = {code: None for code in range(128) if not chr(code).isalnum()}


def is_placeholder(text: str) -> bool:
    """Whether a text stands for no name, whatever else its row says."""
    if len(text) > _LONGEST:
        return not text[0].isalnum() and not any(map(str.isalnum, text))
    if text.isascii():
        plain = text.lower()
        # The usual name has letters, digits and blanks: translating takes five times as long.
        word = plain.replace(" ", "")
        word = word if word.isalnum() else word.translate(_ASCII_PUNCTUATION)
    else:
        plain = normalise(text)
        word = "".join(filter(str.isalnum, plain))
    return not word or word in PLACEHOLDERS or plain in _WRITTEN or (word in DOUBTFUL and word != plain)


def is_doubtful(text: str) -> bool:
    """Whether a text stands for no name unless its row says of which place it is the name."""
    return len(text) <= _LONGEST and normalise(text) in DOUBTFUL
