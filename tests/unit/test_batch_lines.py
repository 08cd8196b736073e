"""Lines of a batch's files: whatever they hold, in whatever pieces they come."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.llm.batches.batch import words_of
from workers.llm.batches.lines import LineEnd, LineReader, line_of, read_line

ANSWER = b'{"choices": [1],"x":"\\u00e9"}'


def _line(**more: Any) -> bytes:
    return json.dumps({"id": "b", "custom_id": "k", "response": {"status_code": 200, "body": {}}} | more).encode()


def test_an_answer_is_kept_byte_by_byte() -> None:
    line = b'{"custom_id":"k","response":{"status_code":200,"request_id":"r","body":' + ANSWER + b'},"error":null}'
    assert read_line(line) == LineEnd("k", 200, ANSWER, "")


@pytest.mark.parametrize(
    ("more", "status", "body", "error"),
    [
        ({"response": None, "error": {"code": "batch_expired", "message": "Not executed."}}, 0, b"",
         "batch_expired: Not executed."),
        ({"response": None, "error": "late"}, 0, b"", "late"),
        ({"error": {"code": None, "message": None}}, 200, b"{}", ""),
        ({"error": {}}, 200, b"{}", ""),
        ({"error": ["one", {"message": "two\nlines"}]}, 200, b"{}", "one; two lines"),
        ({"response": {"status_code": 429, "body": {"error": 1}}}, 429, b'{"error": 1}', ""),
        ({"response": {"status_code": "500", "body": None}}, 500, b"", ""),
        ({"response": {"status_code": True, "body": {}}}, 0, b"{}", ""),
        ({"response": {"status_code": -1, "body": {}}}, 0, b"{}", ""),
        ({"response": {"body": {"choices": []}}}, 200, b'{"choices": []}', ""),
        ({"response": {}}, 0, b"", ""),
        ({"response": [1]}, 0, b"", ""),
        ({"response": "text"}, 0, b"", ""),
        ({"custom_id": 7}, 200, b"{}", ""),
    ],
)  # fmt: skip
def test_a_line_of_any_shape_is_read(more: dict[str, Any], status: int, body: bytes, error: str) -> None:
    assert read_line(_line(**more)) == LineEnd(str(more.get("custom_id", "k")), status, body, error)


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b"null", b"{}", _line(custom_id=None), _line(custom_id=""), b"\xff\xfe", b"[" * 100_000]
)
def test_what_names_no_request_is_no_line(line: bytes) -> None:
    assert read_line(line) is None


@pytest.mark.parametrize("url", ["/v1/chat/completions", ""])
def test_a_request_is_one_line_around_its_body(url: str) -> None:
    line = line_of("k", ANSWER, url)
    assert line.count(b"\n") == 1
    assert line.endswith(b'"body":' + ANSWER + b"}\n")
    named = {"method": "POST", "url": url} if url else {}
    assert msgspec.json.decode(line) == {"custom_id": "k", "body": json.loads(ANSWER)} | named


@given(
    st.lists(st.sampled_from(["good", "blank", "broken", "long"]), max_size=12),
    st.lists(st.integers(1, 400), min_size=1, max_size=9),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
)
def test_a_file_says_the_same_in_whatever_pieces_it_comes(
    kinds: list[str], sizes: list[int], newline: bytes, is_ended: bool
) -> None:
    texts = {"blank": b"  ", "broken": b"{no", "long": b'{"x":"' + 300 * b"y" + b'"}'}
    lines = [texts.get(kind) or _line(custom_id=f"k{number}") for number, kind in enumerate(kinds)]
    file = b"\xef\xbb\xbf" + newline.join(lines) + (newline if is_ended else b"")
    reader = LineReader(200)
    found: list[str] = []
    at = turn = 0
    while at < len(file):
        size = sizes[turn % len(sizes)]
        found += [end.key for end, _ in reader.feed(file[at : at + size])]
        at, turn = at + size, turn + 1
    last = reader.last()
    found += [last.key] if last else []
    assert found == [f"k{number}" for number, kind in enumerate(kinds) if kind == "good"]
    counted = {"good": reader.read, "broken": reader.unreadable, "long": reader.too_long}
    assert counted == {kind: kinds.count(kind) for kind in counted}


def test_errors_of_any_shape_are_one_short_line() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    for error in (deep, 5, True, {"a": {"b": [1, 2]}}, ["a"] * 500, {"message": "m" * 5000}, {"data": [{"code": 9}]}):
        said = words_of(error)
        assert said
        assert len(said) <= 300
        assert "\n" not in said
