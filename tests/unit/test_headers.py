"""What servers write into their headers about when to come back, and what is made of it."""

import logging
import math
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from workers.llm.limits import headers as headers_module
from workers.llm.limits.headers import (
    MAX_WAIT_SECONDS,
    HeaderSeconds,
    duration_seconds,
    exhausted_seconds,
    retry_after_seconds,
    unix_time,
    wait_seconds,
    words_seconds,
)

#: 2026-11-28 12:00:00 UTC.
NOW = 1_795_867_200.0


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("rate limit reached. please try again in 2s. visit https://x", 2),
        ("quota exceeded. please retry in 39.437s.", 39.437),
        ("please try again in 1h2m3.5s", 3723.5),
        ("try again in 120ms", 0.12),
        ("please retry after 26 seconds. please go here", 26),
        ("please wait 40000 seconds before retrying", 40_000),
        ("try again in 1 hour, 5 minutes", 3900),
        ("try again later", None),
        ("try again in 20", None),
        ("try again in 99999999h", None),
        (f"try again in {'9' * 500}s", None),
    ],
)
def test_the_wait_that_an_error_s_words_name_is_read(words: str, seconds: float | None) -> None:
    found = words_seconds(words)
    assert found == seconds
    assert found is None or found.source.strip("'") in words


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("6m0s", 360), ("120ms", 0.12), ("20", 20), ("2m59.56s", 179.56), ("1h2m3s", 3723), ("1d", 86_400),
     ("0", 0), ("0s", 0), ("9.5e-05", 9.5e-5), ("", None), ("soon", None), ("-1", None), ("nan", None), ("inf", None),
     ("1s2h", None), ("1e400", None), ("9" * 400, None), ("٣s", None), ("1_0", None)],
)  # fmt: skip
def test_the_durations_of_providers_are_read(text: str, seconds: float | None) -> None:
    read = duration_seconds(text)
    assert read is None if seconds is None else read == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0), ("2", 2), (" 2.5 ", 2.5), ("432", 432), ("86400", 86_400), ("1s", 1), ("6m0s", 360), ("120ms", 0.12),
        # Times, by the second, millisecond, microsecond, nanosecond.
        (f"{NOW + 2:.0f}", 2), (f"{NOW + 2.5}", 2.5), (f"{(NOW + 2) * 1e3:.0f}", 2), (f"{(NOW + 2) * 1e6:.0f}", 2),
        (f"{(NOW + 2) * 1e9:.0f}", 2),
        # Times that have just passed: the clocks differ.
        (f"{NOW - 2:.0f}", 0), (formatdate(NOW - 30, usegmt=True), 0),
        (formatdate(NOW + 90, usegmt=True), 90), ("Sat, 28 Nov 2026 12:01:30 -0000", 90),
        ("Saturday, 28-Nov-26 12:01:30 GMT", 90), ("Sat Nov 28 12:01:30 2026", 90),
        ("2026-11-28T12:01:30Z", 90), ("2026-11-28T14:01:30+02:00", 90), ("2026-11-28T12:01:30.500", 90.5),
        # Out of range, or no time at all.
        ("-5", None), ("nan", None), ("inf", None), ("-inf", None), ("1e400", None), ("1e5", None), ("", None),
        ("86401", None), ("100000000", None), ("1000000000", None), ("9" * 400, None), (str(2**63), None),
        (str(10**30), None), ("٣٠", None), ("३०", None), ("\uff13\uff10", None), ("1_000", None), ("0x10", None),
        ("soon", None), ("Thu, 01 Jan 1970 00:00:00 GMT", None), ("Sat, 28 Nov 9999 12:00:00 GMT", None),
        ("2036-11-28T12:00:00Z", None), ("true", None), ("30,", None),
    ],
)  # fmt: skip
def test_a_wait_is_read_in_every_spelling_and_unknown_out_of_range(text: str, seconds: float | None) -> None:
    read = wait_seconds(text, now=NOW)
    assert read is None if seconds is None else read == pytest.approx(seconds, abs=1e-3)


_NUMBERS = st.one_of(
    st.integers(min_value=-(10**30), max_value=10**30).map(str),
    st.floats().map(str),
    st.text(alphabet="0123456789.eE+-smhd:TZ, \u0663", max_size=40),
    st.text(max_size=40),
    st.datetimes().map(lambda at: at.isoformat()),
    st.floats(-(10**11), 10**11).map(lambda at: formatdate(at) if abs(at) < 10**10 else str(at)),
)


@given(_NUMBERS, st.floats(0, 4e9))
def test_whatever_a_header_says_is_a_wait_within_bounds_or_nothing(text: str, now: float) -> None:
    said = {
        "Retry-After": text, "retry-after-ms": text, "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": text, "x-ratelimit-limit-tokens": text, "RateLimit-Reset": text,
        "ratelimit-remaining": "0",
    }  # fmt: skip
    duration = duration_seconds(text)
    assert duration is None or (math.isfinite(duration) and duration >= 0)
    for read in (
        wait_seconds(text, now=now),
        retry_after_seconds(said, now=now),
        exhausted_seconds(said, now=now),
    ):
        assert read is None or (math.isfinite(read) and 0 <= read <= MAX_WAIT_SECONDS)


@pytest.mark.parametrize(
    ("sent", "seconds", "source"),
    [
        ([("retry-after", "5")], 5, "Retry-After: 5"),
        ([("Retry-After", "60"), ("Retry-After-Ms", "1500")], 1.5, "retry-after-ms: 1500"),
        ([("Retry-After", "30"), ("retry-after-ms", "soon")], 30, "Retry-After: 30"),
        ([("Retry-After", "5"), ("Retry-After", "10")], 10, "Retry-After: 5, 10"),
        ([("Retry-After", "5, 10")], 10, "Retry-After: 5, 10"),
        ([("Retry-After", f"{formatdate(NOW + 90, usegmt=True)}, 10")], 90, None),
        ([("Retry-After", "soon, 10")], 10, "Retry-After: soon, 10"),
        ([("Retry-After", "soon")], None, None),
        ([("Retry-After", "")], None, None),
        ([], None, None),
    ],
)
def test_several_headers_and_several_values_are_one_wait(
    sent: list[tuple[str, str]], seconds: float | None, source: str | None
) -> None:
    read = retry_after_seconds(CIMultiDictProxy(CIMultiDict(sent)), now=NOW)
    assert read is None if seconds is None else read == pytest.approx(seconds)
    if source:
        assert isinstance(read, HeaderSeconds)
        assert read.source == source


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "1s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"}, 1.0),
        ({"x-ratelimit-remaining-requests": "0"}, None),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "1m0s",
                "x-ratelimit-limit-requests": "60",
            },
            1.0,
        ),
        (
            {
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "50s",
                "x-ratelimit-limit-tokens": "10000",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "200ms",
            },
            0.5,
        ),
        # A window that ends: OpenRouter, GitHub, the IETF's draft.
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": f"{(NOW + 9) * 1000:.0f}", "X-RateLimit-Limit": "9"}, 9),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": f"{NOW + 9:.0f}"}, 9),
        ({"RateLimit-Remaining": "0", "RateLimit-Reset": "9"}, 9),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2026-11-28T12:01:00Z",
                "anthropic-ratelimit-requests-limit": "60",
            },
            1.0,
        ),
        ({"x-ratelimit-remaining-tokens-minute": "0", "x-ratelimit-reset-tokens-minute": "7.5"}, 7.5),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1e400"}, None),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "-1"}, None),
        ({"x-ratelimit-remaining": "-1", "x-ratelimit-reset": "30"}, None),
    ],
)
def test_headers_that_say_nothing_remains_are_a_cool_down(headers: dict[str, str], seconds: float | None) -> None:
    read = exhausted_seconds(headers, now=NOW)
    assert read is None if seconds is None else read == pytest.approx(seconds)


def test_what_cannot_be_read_is_logged_once_for_an_endpoint(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headers_module, "_logged", set())
    caplog.set_level(logging.WARNING)
    for endpoint in ("http://a", "http://a", "http://b"):
        assert retry_after_seconds({"Retry-After": "9\x1b[2J"}, now=NOW, endpoint=endpoint) is None
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "http://a" in said[0]
    assert "9?[2J" in said[0], "what would steer a terminal is not repeated"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1790000000", 1_790_000_000.0),
        ("1790000000.5", 1_790_000_000.5),
        ("1790000000000", 1_790_000_000.0),
        ("2026-09-21T14:13:20Z", 1_790_000_000.0),
        ("2026-09-21T16:13:20+02:00", 1_790_000_000.0),
        ("Mon, 21 Sep 2026 14:13:20 GMT", 1_790_000_000.0),
        ("5", None),
        ("soon", None),
        ("", None),
        ("9" * 100, None),
    ],
)
def test_a_time_is_read_in_any_unit(text: str, seconds: float | None) -> None:
    assert unix_time(text) == seconds
