"""Flower's templates under our header and style sheet, and ours beside them."""

from pathlib import Path
from typing import Any, Final

from tornado.template import Loader, Template

PREFIX: Final = "themes/"
#: Flower's navigation: our header, with the page that Flower says it is on.
_HEADER: Final = '{% set root, here, bare = handler.prefix, active_tab, False %}{% include "themes/header.html" %}'
_SHEET: Final = """<link href="{{ static_url('css/flower.css') }}" rel="stylesheet">"""
_ASSETS: Final = "{{ handler.prefix }}/jobs/assets"
_OURS: Final = (
    f'{_SHEET}<link rel="stylesheet" href="{_ASSETS}/flower.css">'
    f'<script type="module" src="{_ASSETS}/keys.js"></script>'
)
_TASKS: Final = (
    '<div><h1>Tasks</h1><p class="page-description">A Celery task is a chunk: some destinations of one job. '
    '<a href="{{ handler.prefix }}/jobs">Jobs</a> count destinations. Times are UTC.</p>'
)
#: What stands in Flower's templates, and what stands there instead; where a newer Flower has other words, they stay.
_INSTEAD: Final = {
    # What our content security policy does not let through.
    '<script type="text/javascript">': '<script nonce="{{ handler.nonce }}">',
    '<th style="width: 125px;">': "<th>",
    _SHEET: _OURS,
    '<a class="skip-link" href="#main-content">Skip to main content</a>': "",
    'id="main-content"': 'id="main"',
    "Flower{% end %}": "themes{% end %}",
    '<div>\n      <p class="page-eyebrow">Task history</p>': _TASKS,
    '<div>\n      <p class="page-eyebrow">Cluster overview</p>': "<div><h1>Workers</h1>",
    '<div>\n      <p class="page-eyebrow">Message broker</p>': "<div><h1>Broker</h1>",
    '<p class="page-eyebrow">Task details</p>': "<h1>Task</h1>",
    '<p class="metric-label">Succeeded</p>': '<p class="metric-label">Tasks succeeded</p>',
    '<p class="metric-label">Failed</p>': '<p class="metric-label">Tasks failed</p>',
    "<th ": '<th scope="col" ',
    "<th>": '<th scope="col">',
}


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
        elif name == "navbar.html":
            text = _HEADER
        else:
            text = Path(self.root, name).read_text("utf-8")
            for flowers, ours in _INSTEAD.items():
                text = text.replace(flowers, ours)
        return Template(text, name=name, loader=self)
