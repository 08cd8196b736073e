"""Who is answered by the dashboard, decided from a request's headers."""

import pytest
from flower.urls import handlers
from flower.views import BaseHandler
from flower.views.auth import GithubLoginHandler, LoginHandler, LogoutHandler
from flower.views.error import NotFoundErrorHandler
from flower.views.tasks import TasksDataTable
from tornado.web import ErrorHandler, StaticFileHandler

from workers.dashboard.guard import Guarded, guarded, is_cross_site, is_loopback, is_ours


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LocalHost", "localhost."])
def test_loopback_is_known_in_every_spelling(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "2130706433", "evil"])  # noqa: S104
def test_what_is_not_surely_loopback_is_not(host: str) -> None:
    assert not is_loopback(host)


def test_a_host_header_must_name_this_machine_or_where_we_listen() -> None:
    assert is_ours("127.0.0.1:5555", "127.0.0.1")
    assert is_ours("[::1]:5555", "")
    assert is_ours("themes.local", "themes.local")
    assert not is_ours("evil.example:5555", "127.0.0.1")
    assert not is_ours("", "")
    assert not is_ours("[broken", "127.0.0.1")
    assert not is_ours("evil.example", "")
    assert not is_ours("127.0.0.1@evil.example", "127.0.0.1")


def test_a_browser_says_where_a_request_comes_from() -> None:
    def crosses(origin: str | None = None, fetch_site: str | None = None) -> bool:
        return is_cross_site(host="127.0.0.1:5555", origin=origin, fetch_site=fetch_site)

    assert not crosses()
    assert not crosses("http://127.0.0.1:5555", "same-origin")
    assert not crosses("http://127.0.0.1:5555")
    assert not crosses(fetch_site="none")
    for site in ("cross-site", "same-site", "nonsense"):
        assert crosses("http://127.0.0.1:5555", site)
    for origin in ("null", "", "http://evil.example", "http://127.0.0.1:9999", "http://127.0.0.1:5555.evil.example"):
        assert crosses(origin)


def test_every_handler_of_flowers_gets_the_guard_and_only_the_login_answers_without_one() -> None:
    every = [getattr(spec, "handler_class", None) or spec[1] for spec in handlers] + [ErrorHandler]
    assert StaticFileHandler in every
    for handler in every:
        made = guarded(handler, None)
        assert made.__mro__[1] is Guarded
        assert made.is_login == (handler in {LoginHandler, LogoutHandler})  # type: ignore[attr-defined]
        assert made.only_reads == (handler is TasksDataTable)  # type: ignore[attr-defined]
        assert guarded(handler, None) is made


def test_the_login_is_the_providers_or_none() -> None:
    provider = guarded(LoginHandler, "flower.views.auth.GithubLoginHandler")
    assert issubclass(provider, GithubLoginHandler)
    assert provider.is_login  # type: ignore[attr-defined]
    assert issubclass(guarded(LoginHandler, None), NotFoundErrorHandler)
    assert issubclass(provider, BaseHandler)
