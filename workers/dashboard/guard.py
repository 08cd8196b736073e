"""The guard before every page and answer of the dashboard, Flower's own included.

Without a login it answers to names of this machine alone (DNS rebinding) and lets nothing be changed; with one it asks
for it everywhere, metrics and static files included. A change must come from our own pages. Every response has the
security headers.
"""

import asyncio
import functools
import ipaddress
import secrets
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from celery.utils.imports import symbol_by_name
from flower.views import BaseHandler
from flower.views.auth import LoginHandler, LogoutHandler
from flower.views.error import NotFoundErrorHandler
from flower.views.tasks import TasksDataTable
from tornado.web import HTTPError, RequestHandler

#: Seconds that a wrong password takes to be refused; others wait behind it.
WRONG_SECONDS: Final = 0.25
_WRONG: Final = asyncio.Lock()
READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: Headers of every response beside the content security policy.
HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
#: Flower opens itself to other sites where `FLOWER_UNAUTHENTICATED_API` is set; we do not.
CROSS_ORIGIN: Final = (
    "Access-Control-Allow-Origin", "Access-Control-Allow-Headers", "Access-Control-Allow-Methods",
)  # fmt: skip
#: Styles set by scripts through the DOM are no inline styles; the one script inside a page of Flower's has the nonce.
POLICY: Final = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


#: What a page says of a status.
TITLES: Final = {
    401: "A login is needed", 403: "This is refused", 404: "There is no such page", 500: "Something went wrong here",
}  # fmt: skip
TEXTS: Final = {404: "Nothing is at this address.", 500: "The dashboard's log has the error."}
SERVER_ERROR: Final = 500
PAGES: Final = Path(__file__).parent / "pages"


def style(*names: str) -> str:
    return "".join((PAGES / f"{name}.css").read_text("utf-8") for name in ("colours", *names))


#: The style sheet of our pages.
STYLE: Final = style("base", "header", "themes", "jobs")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address: `localhost`, 127.0.0.0/8 or ::1."""
    if host.rstrip(".").lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_ours(host: str, address: str) -> bool:
    """Whether a `Host` header names this machine: loopback, or the address that the settings name."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name) or (bool(address) and name == address.strip("[]").lower())


def is_cross_site(*, host: str, origin: str | None, fetch_site: str | None) -> bool:
    """Whether a request comes from another site's page; one without these headers is not from a browser."""
    if fetch_site:
        return fetch_site not in {"same-origin", "none"}
    return origin is not None and urlsplit(origin).netloc.lower() != host.lower()


def has_login(options: Any) -> bool:
    return bool(options.basic_auth or options.auth)


def root_of(options: Any) -> str:
    prefix = (options.url_prefix or "").strip("/")
    return f"/{prefix}" if prefix else ""


class Guarded(RequestHandler):
    #: Flower's, which has `options`.
    application: Any
    #: Whether it is the way to an auth provider, which must answer without the login.
    is_login: bool = False
    #: Whether it changes nothing although it is asked by POST.
    only_reads: bool = False

    def set_default_headers(self) -> None:
        super().set_default_headers()
        for name in CROSS_ORIGIN:
            self.clear_header(name)
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.set_header("Content-Security-Policy", POLICY.format(nonce=self.nonce))

    @functools.cached_property
    def nonce(self) -> str:
        return secrets.token_urlsafe(16)

    @property
    def prefix(self) -> str:
        """What stands before every address: Flower's `url_prefix`."""
        return root_of(self.application.options)

    async def prepare(self) -> None:
        reason = self._refusal()
        if reason:
            self._refuse(403, reason)
            return
        options = self.application.options
        if has_login(options) and not (self.is_login and options.auth) and not self._is_known():
            if "Authorization" in self.request.headers:
                # One wrong password after the other, each for a while: guessing takes years.
                async with _WRONG:
                    await asyncio.sleep(WRONG_SECONDS)
            self._ask_login()
            return
        going_on = super().prepare()
        if going_on is not None:
            await going_on

    def _refusal(self) -> str:
        options, request = self.application.options, self.request
        is_open = not has_login(options)
        if is_open and not is_ours(request.host, options.address):
            return (
                f"the dashboard has no password, so it answers to names of this machine only, not to "
                f"{request.host[:100]!r}: use http://127.0.0.1, or set THEMES_DASHBOARD__BASIC_AUTH=user:password"
            )
        if request.method in READING:
            return ""
        headers = request.headers
        if is_cross_site(host=request.host, origin=headers.get("Origin"), fetch_site=headers.get("Sec-Fetch-Site")):
            return "this came from another site's page"
        if is_open and not self.only_reads:
            return (
                "nothing can be changed without a login, whatever FLOWER_UNAUTHENTICATED_API says: "
                "set THEMES_DASHBOARD__BASIC_AUTH=user:password"
            )
        return ""

    def _is_known(self) -> bool:
        """Whether the request carries the login. Flower's own check, for handlers that have none too."""
        try:
            return bool(BaseHandler.get_current_user(self))
        except (HTTPError, TypeError):
            # A wrong password; or one that is not ASCII, which cannot be compared.
            return False

    def _ask_login(self) -> None:
        options = self.application.options
        if options.basic_auth:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
            self._refuse(401, "a password is needed")
        elif self.request.method == "GET" and "text/html" in self.request.headers.get("Accept", ""):
            self.redirect(f"{self.settings['login_url']}?next={quote(self.request.uri or '/', safe='')}")
        else:
            self._refuse(401, "a login is needed")

    def _refuse(self, status: int, reason: str) -> None:
        self.set_status(status)
        if self._wants_page():
            self._show_refusal(status, reason)
            return
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{status} {reason}\n")

    def _wants_page(self) -> bool:
        return "text/html" in self.request.headers.get("Accept", "")

    def _show_refusal(self, status: int, reason: str) -> None:
        """A page in our look that needs nothing else: its style sheet would be refused too."""
        policy = f"default-src 'none'; img-src data:; style-src 'nonce-{self.nonce}'; frame-ancestors 'none'"
        self.set_header("Content-Security-Policy", policy)
        self.current_user = None
        text = reason[:1].upper() + reason[1:]
        self._show(TITLES[status], f"{text}.", bare=True, style=STYLE)

    def _show(self, title: str, text: str, **more: Any) -> None:
        words = {"title": title, "text": text, "root": self.prefix, "here": "", "bare": False, **more}
        RequestHandler.render(self, "themes/message.html", **words)

    def write_error(self, status_code: int, **more: Any) -> None:
        """A person gets a page in our look; a program what its handler says."""
        if not self._wants_page():
            super().write_error(status_code, **more)
            return
        error = more.get("exc_info", (None, None, None))[1]
        said = str(getattr(error, "log_message", None) or "") if status_code < SERVER_ERROR else ""
        self._show(TITLES.get(status_code, self._reason), said or TEXTS.get(status_code, f"Error {status_code}."))


class Handler(BaseHandler):
    """What our own pages have in common: no proxy keeps them, and errors are one line."""

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Cache-Control", "no-store")

    def write_error(self, status_code: int, **_: Any) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{status_code} {self._reason}\n")


@functools.cache
def guarded(handler: type[RequestHandler], provider: str | None) -> type[RequestHandler]:
    """The same handler with the guard in front; `provider` is the class that Flower's log-in makes of itself."""
    # Flower's table of tasks sends what it asks for in the body.
    kind = {
        "is_login": issubclass(handler, (LoginHandler, LogoutHandler)),
        "only_reads": issubclass(handler, TasksDataTable),
    }
    if issubclass(handler, LoginHandler):
        handler = symbol_by_name(provider) if provider else NotFoundErrorHandler
    return type(f"Guarded{handler.__name__}", (Guarded, handler), kind)
