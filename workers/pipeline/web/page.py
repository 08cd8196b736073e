"""What a page says, as plain text: its prose, without what surrounds it."""

from html.parser import HTMLParser
from typing import Final

#: Elements whose text is not the page's.
_SKIPPED: Final = frozenset({
    "script", "style", "noscript", "template", "svg", "math", "table", "nav", "header", "footer", "aside", "form",
    "button", "select", "figure", "sup", "audio", "video", "iframe", "title",
})  # fmt: skip
#: Elements that stand on lines of their own.
_BLOCKS: Final = frozenset({"p", "li", "h1", "h2", "h3", "h4", "dd", "dt", "blockquote", "div", "section", "article"})
#: Elements without an end tag.
_VOID: Final = frozenset({"br", "hr", "img", "input", "link", "meta", "area", "base", "col", "embed", "source", "wbr"})
#: A shorter line is a label, not a sentence.
SHORTEST_LINE: Final = 40
#: Elements within elements, beyond which a page is no page.
DEEPEST: Final = 500


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.lines: list[str] = []
        self._line: list[str] = []
        self._skipped: list[str] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title":
            self._in_title = not self.title
        if tag in _VOID:
            return
        hidden = any(name == "hidden" or (name == "aria-hidden" and value == "true") for name, value in attrs)
        if (tag in _SKIPPED or hidden or self._skipped) and len(self._skipped) < DEEPEST:
            self._skipped.append(tag)
        if tag in _BLOCKS:
            self._end_line()

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        if tag in self._skipped:
            while self._skipped.pop() != tag:
                pass
        if tag in _BLOCKS:
            self._end_line()

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._skipped:
            self._line.append(data)

    def _end_line(self) -> None:
        line = " ".join("".join(self._line).split())
        self._line.clear()
        if len(line) >= SHORTEST_LINE:
            self.lines.append(line)

    def close(self) -> None:
        super().close()
        self._end_line()


def text_of(html: str) -> tuple[str, str]:
    """The title and the prose of a page, a paragraph a line."""
    reader = _Text()
    reader.feed(html)
    reader.close()
    return " ".join(reader.title.split()), "\n".join(reader.lines)
