"""What all our pages have in common beside the guard: they are never kept by a proxy, and errors are one line."""

from typing import Any

from flower.views import BaseHandler


class Handler(BaseHandler):
    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")

    def write_error(self, status_code: int, **_: Any) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{status_code} {self._reason}\n")
