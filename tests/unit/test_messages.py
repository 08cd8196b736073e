import unicodedata
from typing import Any

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tasks.frames import COMPRESS_FROM_BYTES, MAX_UNPACKED_BYTES, WireError
from tasks.identity import destination_id, normalise
from tasks.messages import Chunk, Destination, Result, StreamEntry, Usage, pack, unpack

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
_destinations = st.builds(
    Destination.of,
    _text,
    st.none() | _text,
    region=st.none() | _text,
    lat=st.none() | st.floats(-90, 90),
    lon=st.none() | st.floats(-180, 180),
    extra=st.dictionaries(_text, _text, max_size=3),
)
_chunks = st.builds(
    Chunk,
    job_id=_text,
    chunk_id=_text,
    destinations=st.lists(_destinations, max_size=8).map(tuple),
    attempt=st.integers(0, 2**63 - 1),
)
_types = st.sampled_from([Any, Chunk, Destination, Result, StreamEntry, Usage, list[int], dict[str, str], bytes])


@given(chunk=_chunks, compress=st.booleans())
def test_what_is_packed_is_unpacked(chunk: Chunk, *, compress: bool) -> None:
    assert unpack(pack(chunk, compress=compress), Chunk) == chunk


@given(usage=st.builds(Usage, llm_calls=st.integers(0, 99), cost_usd=st.none() | st.floats(0, 9)))
def test_an_entry_of_the_stream_comes_back_as_its_own_type(usage: Usage) -> None:
    result = Result("job", "id", 1, usage, "worker", 1.5, 2.5)
    assert unpack(pack(result), StreamEntry) == result


def test_only_what_is_long_enough_is_compressed_and_only_when_asked_for() -> None:
    short, long = ["x"], ["x" * COMPRESS_FROM_BYTES]
    assert [pack(short)[:1], pack(long)[:1], pack(long, compress=False)[:1]] == [b"\x00", b"\x01", b"\x00"]
    assert len(pack(long)) < COMPRESS_FROM_BYTES / 4


@given(data=st.binary(max_size=200), codec=st.sampled_from([b"", b"\x00", b"\x01", b"\x02"]), type_=_types)
def test_foreign_bytes_raise_nothing_but_a_wire_error(data: bytes, codec: bytes, type_: Any) -> None:
    for body in (data, zstandard.compress(data)):
        try:
            unpack(codec + body, type_)
        except WireError as exc:
            assert str(exc)  # noqa: PT017  # bytes that happen to be a message are as good


@given(chunk=_chunks, compress=st.booleans(), at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_flipped_byte_raises_nothing_but_a_wire_error(chunk: Chunk, at: int, byte: int, *, compress: bool) -> None:
    packed = bytearray(pack(chunk, compress=compress))
    packed[at % len(packed)] = byte
    try:
        unpack(bytes(packed), Chunk)
    except WireError as exc:
        assert str(exc)  # noqa: PT017  # a flip inside a text may pass


_NO_SIZE = zstandard.ZstdCompressor(write_content_size=False).compress(b"\xc0")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unknown codec byte b''"),
        (b"\x07abc", "unknown codec byte"),
        (b"\x00", "truncated"),
        (b"\x00" + b"\x91" * 100_000, "recursion"),
        (b"\x00\xa1\xff", "utf-8"),
        (b"\x00\x81\x80\x01", "must be hashable"),
        (b"\x00\x81\x91\x80\x01", "hashable"),
        (b"\x00\xc0\xc0", "trailing"),
        (b"\x00\xdd\xff\xff\xff\xff", "truncated"),
        (b"\x01", "not zstd"),
        (b"\x01" + _NO_SIZE, "compressed without its size"),
        (b"\x01" + zstandard.compress(b"\xc0") + b"x", "not zstd"),
        (b"\x01" + zstandard.compress(b"\xc0") * 2, "not zstd"),
        (b"\x01" + zstandard.compress(b""), "truncated"),
        (b"\x01" + zstandard.compress(b"\x00" * (MAX_UNPACKED_BYTES + 1)), "67108865 bytes when unpacked"),
    ],
)
def test_bytes_that_are_no_message_say_why(data: bytes, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        unpack(data, Any)
    assert reason in str(caught.value)


def test_another_type_than_the_expected_is_refused() -> None:
    with pytest.raises(WireError, match="Chunk"):
        unpack(pack(Usage(llm_calls=1)), Chunk)
    with pytest.raises(WireError, match="Expected"):
        unpack(pack({"id": 1, "name": "Kyoto"}), Destination)


def test_a_wire_error_is_a_value_error() -> None:
    assert issubclass(WireError, ValueError)


def test_a_message_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Destination.of("Kyoto").name = "Paris"  # type: ignore[misc]


def test_a_destination_leaves_out_what_it_does_not_have() -> None:
    assert set(msgspec.msgpack.decode(pack(Destination.of("Kyoto"))[1:])) == {"id", "name"}


# --- ids ---


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("PARIS ", "paris"),
        ("\uff30\uff21\uff32\uff29\uff33", "Paris"),
        ("New\u00a0 York\t", "new york"),
        ("Reykjavi\u0301k", "Reykjav\u00edk"),
        ("STRASSE", "stra\u00dfe"),
        ("\ufb01nland", "Finland"),
        ("Pa\u00adris", "Paris"),
        ("\ufeffParis", "Paris"),
        ("Pa\u200bris", "Paris"),
    ],
)
def test_spellings_of_one_name_share_an_id(one: str, other: str) -> None:
    assert destination_id(one) == destination_id(other)
    assert destination_id("x", one) == destination_id("x", other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("Paris", None), ("Paris", "France")),
        (("Paris", "France"), ("Paris", "United States")),
        (("Paris France", None), ("Paris", "France")),
        (("Paris\x1fFrance", None), ("Paris", "France")),
        (("NewYork", None), ("New York", None)),
        (("Xi'an", "China"), ("Xian", "China")),
    ],
)
def test_different_destinations_have_different_ids(one: tuple[str, str | None], other: tuple[str, str | None]) -> None:
    assert destination_id(*one) != destination_id(*other)


def test_ids_do_not_change_between_versions() -> None:
    assert destination_id("Kyoto", "Japan") == destination_id("Kyoto", "Japan") == _KYOTO
    assert destination_id("Maldives") == destination_id("Maldives", "") == _MALDIVES


_KYOTO = "19ce1f37af8a80075e34"
_MALDIVES = "08e9e791b2209681f17d"


@given(st.text(), st.none() | st.text())
def test_an_id_is_twenty_hex_digits_whatever_the_name(name: str, country: str | None) -> None:
    id_ = destination_id(name, country)
    assert len(bytes.fromhex(id_)) == 10
    assert destination_id(f" {name}\n", country) == id_


@given(st.text())
def test_normalising_again_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once


@given(st.text())
def test_case_form_and_blanks_are_folded(text: str) -> None:
    assert normalise(text.casefold()) == normalise(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert normalise(unicodedata.normalize(form, text)) == normalise(text)  # type: ignore[arg-type]
    assert normalise(text.replace(" ", " \t ")) == normalise(text)
    assert "  " not in normalise(text)


def test_every_character_alone_is_normalised_for_good() -> None:
    for code in range(0x30000):
        once = normalise(chr(code))
        assert normalise(once) == once, hex(code)
