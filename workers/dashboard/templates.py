"""Flower's templates with a way to our pages in its navigation, and ours beside them."""

from pathlib import Path
from typing import Any, Final

from tornado.template import Loader, Template

#: Where Flower's list of pages begins, and what we put first.
_NAVIGATION: Final = '<ul class="app-nav navbar-nav">'
_OURS: Final = (
    '{% set prefix = (handler.application.options.url_prefix or "").strip("/") %}'
    """<li class="nav-item"><a class="nav-link" href="{{ '/' + prefix if prefix else '' }}/jobs">Jobs</a></li>"""
    """<li class="nav-item"><a class="nav-link" href="{{ '/' + prefix if prefix else '' }}/llm">LLM</a></li>"""
)
#: What our content security policy does not let through, and what stands there instead.
_STRICT: Final = {
    '<script type="text/javascript">': '<script nonce="{{ handler.nonce }}">',
    '<th style="width: 125px;">': "<th>",
}
PREFIX: Final = "themes/"


class Templates(Loader):
    """Loads Flower's templates from its folder and ours, whose names begin with `PREFIX`, from another."""

    def __init__(self, flowers: str, ours: Path, **options: Any) -> None:
        super().__init__(flowers, **options)
        self._ours = ours

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        if parent_path and parent_path.startswith(PREFIX) and not name.startswith(PREFIX):
            return PREFIX + name
        return str(super().resolve_path(name, parent_path))

    def _create_template(self, name: str) -> Template:
        if name.startswith(PREFIX):
            text = (self._ours / name.removeprefix(PREFIX)).read_text("utf-8")
            return Template(text, name=name, loader=self)
        text = Path(self.root, name).read_text("utf-8")
        for loose, strict in _STRICT.items():
            text = text.replace(loose, strict)
        if name == "navbar.html":
            # Where a newer Flower has another navigation, it goes without the link.
            text = text.replace(_NAVIGATION, _NAVIGATION + _OURS, 1)
        return Template(text, name=name, loader=self)
