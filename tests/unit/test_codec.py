"""How completions are stored: every codec, garbage of every kind, and bounds."""

import gzip
import zlib
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from workers.llm.cache import codec
from workers.llm.cache.tiers import CachedCompletion

CODECS = ["zstd", "gzip", "raw"]
SAMPLE = b'{"themes": [{"name": "Fado in Alfama", "citations": []}]}' * 20


@given(raw=st.binary(max_size=3000) | st.text(max_size=3000).map(str.encode), name=st.sampled_from(CODECS))
def test_what_was_stored_is_what_is_read(raw: bytes, name: str) -> None:
    stored = codec.encode(raw, name)
    assert codec.decode(stored) == raw
    assert len(stored) <= len(raw) + 2, "nothing grows by more than its head"


@given(st.binary(max_size=300))
def test_garbage_is_only_ever_a_codec_error(garbage: bytes) -> None:
    try:
        codec.decode(garbage)
    except codec.CodecError as exc:
        assert str(exc)  # noqa: PT017  # what happens to be readable is as good


@given(name=st.sampled_from(["zstd", "gzip"]), at=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_never_gives_other_bytes(name: str, at: int, bit: int) -> None:
    stored = bytearray(codec.encode(SAMPLE, name))
    place = at % len(stored)
    stored[place] ^= 1 << bit
    try:
        found = codec.decode(bytes(stored))
    except codec.CodecError:
        return
    # The head of a raw value and gzip's file name, time and system have no checksum; they change no byte of the value.
    assert found == SAMPLE or stored[0] == codec.RAW


@pytest.mark.parametrize("name", ["zstd", "gzip"])
@pytest.mark.parametrize("cut", [1, 4, 20])
def test_a_value_that_was_cut_off_is_refused(name: str, cut: int) -> None:
    with pytest.raises(codec.CodecError):
        codec.decode(codec.encode(SAMPLE, name)[:-cut])


def test_bombs_and_lies_are_refused_before_they_unfold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_BYTES", 100_000)
    zeros = bytes(10_000_000)
    packed = zlib.compressobj(9, zlib.DEFLATED, 31)
    for bomb in (
        bytes((codec.GZIP, 1)) + packed.compress(zeros) + packed.flush(),
        bytes((codec.GZIP, 1)) + gzip.compress(b"one") + gzip.compress(b"two"),
        bytes((codec.ZSTD, 1)) + zstandard.compress(zeros),
        bytes((codec.ZSTD, 1)) + zstandard.ZstdCompressor(write_content_size=False).compress(zeros),
        bytes((codec.ZSTD, 1)) + zstandard.compress(b"one") + zstandard.compress(b"two"),
    ):
        with pytest.raises(codec.CodecError):
            codec.decode(bomb)


def test_a_codec_or_dictionary_of_a_later_version_is_named() -> None:
    for head, says in (((0x42, 1), "0x42"), ((codec.RAW, 9), "version 9"), ((codec.ZSTD, 250), "dictionary 250")):
        with pytest.raises(codec.CodecError, match=says):
            codec.decode(bytes(head) + zstandard.compress(b"x"))


def test_values_of_older_dictionaries_stay_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = codec.encode(SAMPLE, "zstd")
    for name in ("1.b64", "2.b64"):
        (tmp_path / name).write_text((codec.DICTIONARIES / "1.b64").read_text())
    with monkeypatch.context() as patched:
        patched.setattr(codec, "DICTIONARIES", tmp_path)
        for cached in (codec._compressor, codec._decompressor, codec._dictionary):
            cached.cache_clear()
        new = codec.encode(SAMPLE, "zstd")
        assert (old[1], new[1]) == (1, 2), "the newest one writes"
        assert codec.decode(old) == codec.decode(new) == SAMPLE
    for cached in (codec._compressor, codec._decompressor, codec._dictionary):
        cached.cache_clear()


def test_the_dictionary_is_what_makes_small_answers_small() -> None:
    seasons = {"t1": (["April", "May", "October"], ["August"]), "t2": (["December"], [])}
    value = {name: {"seasonality": {"peak": peak, "avoid": avoid}} for name, (peak, avoid) in seasons.items()}
    answer = msgspec.msgpack.encode(CachedCompletion(value, "a-model", 400, 40))
    with_it = len(codec.encode(answer, "zstd"))
    assert with_it * 1.5 < len(zstandard.compress(answer, codec.ZSTD_LEVEL))
    assert with_it * 1.5 < len(codec.encode(answer, "gzip"))
