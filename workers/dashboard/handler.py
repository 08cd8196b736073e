"""What all our pages have in common: Flower's log-in, headers that keep others out, errors in one line."""

from typing import Any

from flower.views import BaseHandler
from flower.views.monitor import Healthcheck, Metrics
from tornado.web import HTTPError


class LoggedIn(BaseHandler):
    """Something behind the same log-in as Flower's pages."""

    def prepare(self) -> None:
        """Ask for the log-in before anything else."""
        if not self.current_user:
            raise HTTPError(401)


class GuardedMetrics(LoggedIn, Metrics):
    """Flower leaves its metrics open where its pages are not: they name workers and tasks."""


class GuardedHealthcheck(LoggedIn, Healthcheck):
    """As the others, so that nothing at all answers without the password."""


class Handler(LoggedIn):
    """A page of ours."""

    def set_default_headers(self) -> None:
        """Nothing from elsewhere, nobody's frame; what is shown is never kept by a proxy."""
        super().set_default_headers()
        self.set_header(
            "Content-Security-Policy",
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
            "font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        )
        self.set_header("X-Frame-Options", "DENY")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """One line; a password is asked for as Flower does."""
        if status_code == 401:  # noqa: PLR2004  # unauthorised
            super().write_error(status_code, **kwargs)
            return
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{status_code} {self._reason}\n")
