"""A profile that is packed and given back."""

import sys
from typing import Any

import msgspec
import pytest
from zstandard import ZstdDecompressor, compress

from tasks.frames import WireError
from tasks.messages import Destination, Missing, PackedProfile, Profile, StageRecord, Usage
from tasks.packed import STAGE_VALUES, UnpackableError, checked, pack_profile, stages_of, unpack_profile
from tests.support.full import Prose, english, full_results
from tests.support.stored import profile_in

TOWN = Destination.of("Kyoto", "Japan", extra={"tier": "1"})


def _profile(**fields: Any) -> Profile:
    lacks = [Missing("analyse.price", "price_point", "RateLimitedError: 429", ["t2"]), Missing("a", "b", "c")]
    found = profile_in(Prose(3, english()).result(TOWN, job_id="j", at=1000.0, missing=lacks))
    return msgspec.structs.replace(found, **fields)


def _with(profile: Profile, **fields: Any) -> Profile:
    first, *others = profile.themes
    return msgspec.structs.replace(profile, themes=[msgspec.structs.replace(first, **fields), *others])


def test_every_field_comes_back() -> None:
    profile = _profile(more={"mood": ["calm"]})
    packed = pack_profile(profile)
    assert unpack_profile(packed, TOWN.id) == profile
    same, themes = checked(packed, TOWN.id)
    assert same is packed
    assert themes == profile.themes
    assert packed.best == profile.top_themes(3)
    assert (packed.theme_count, packed.lacking, packed.quality) == (25, 2, profile.quality_assessment.overall)


def test_no_text_stands_in_the_body_that_has_a_column() -> None:
    body = msgspec.json.decode(ZstdDecompressor().decompress(pack_profile(_profile()).body))
    assert set(body) == {"themes", "overlap_analysis", "quality_assessment", "more", "evidence"}


@pytest.mark.parametrize("bad", ["a\0b", "\x1b]0;t\x07", "\x7f", "\x9b2J", "half \ud83d", "\udc9d"])
def test_texts_are_cleaned_wherever_they_stand(bad: str) -> None:
    """A profile that was paid for is not refused for half a character."""
    for profile in (
        _profile(name=f"N{bad}", extra={f"k{bad}": bad}),
        _profile(model=f"m{bad}"),
        _profile(more={f"k{bad}": [bad]}),
        _profile(missing=[Missing("a", "b", f"why {bad}")]),
        _with(_profile(), rationale=f"r{bad}"),
        _with(_profile(), name=f"n{bad}"),
    ):
        packed = pack_profile(profile)
        found = unpack_profile(packed, TOWN.id)
        texts = str(found).encode("utf-8").decode("unicode_escape", "ignore")
        assert not any(ord(each) < 32 and each not in "\t\n" for each in texts)
        assert checked(packed, TOWN.id)[0] is packed, "what is clean is packed once"


def test_what_comes_with_control_characters_is_packed_anew() -> None:
    packed = pack_profile(_profile())
    body = ZstdDecompressor().decompress(packed.body)
    foul = compress(body.replace(b'"description":"', b'"description":"\\u0000\\u001b', 1))
    for bad in (
        msgspec.structs.replace(packed, body=foul),
        msgspec.structs.replace(packed, name="a\0b"),
        msgspec.structs.replace(packed, best=["a\x1bb"]),
        msgspec.structs.replace(packed, stages=packed.stages.replace('"sandbox"', '"sand\\u0007box"')),
        msgspec.structs.replace(packed, extra={"a\ud800": "b"}),
    ):
        clean, _ = checked(bad, TOWN.id)
        assert clean != bad
        assert checked(clean, TOWN.id)[0] is clean


def test_a_whole_number_of_any_size_stays_in_the_json() -> None:
    packed = pack_profile(_with(_profile(), more={"year": 10**30}))
    assert b'"year":1000000000000000000000000000000' in ZstdDecompressor().decompress(packed.body)
    assert unpack_profile(packed, TOWN.id).themes[0].more == {"year": 10**30}


@pytest.mark.parametrize("fields", [{"confidence": float("nan")}, {"authenticity_score": float("-inf")}])
def test_a_number_that_is_none_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(UnpackableError, match=rf"themes\[0\].{next(iter(fields))} is"):
        pack_profile(_with(_profile(), **fields))


@pytest.mark.parametrize("usage", [Usage(bytes_raw=-1), Usage(cache_stores=2**63), Usage(cost_usd=float("nan"))])
def test_an_amount_that_no_sum_takes_is_refused(usage: Usage) -> None:
    stage = StageRecord("a", "ok", "1", None, "called", usage, 1.0)
    for profile in (_profile(usage=usage), _profile(stages=[stage])):
        with pytest.raises(UnpackableError, match=r"usage"):
            pack_profile(profile)


def test_stages_of_a_version_that_counted_less_are_read() -> None:
    """A number of usage that comes new stands at the end: older rows have none."""
    stages = pack_profile(_profile()).stages
    older = msgspec.json.encode([each[:-1] for each in msgspec.json.decode(stages)]).decode()
    assert stages_of(older) == [
        msgspec.structs.replace(each, usage=msgspec.structs.replace(each.usage, tier_saved_usd=0.0))
        for each in stages_of(stages)
    ]


def test_a_value_that_json_cannot_say_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(10 * sys.getrecursionlimit()):
        deep = [deep]
    for more, why in (({"a": object()}, "TypeError"), ({"a": deep}, "nested too deeply")):
        with pytest.raises(UnpackableError, match=why):
            pack_profile(_profile(more=more))


def _garbled(packed: PackedProfile) -> list[PackedProfile]:
    replace = msgspec.structs.replace
    flipped = bytearray(packed.body)
    flipped[len(flipped) // 2] ^= 1
    body = msgspec.json.decode(ZstdDecompressor().decompress(packed.body))
    stages = msgspec.json.decode(packed.stages)

    def themed(**fields: Any) -> PackedProfile:
        themes = [body["themes"][0] | fields, *body["themes"][1:]]
        return replace(packed, body=compress(msgspec.json.encode(body | {"themes": themes})))

    def staged(place: int, value: Any) -> PackedProfile:
        first = [*stages[0][:place], value, *stages[0][place + 1 :]]
        return replace(packed, stages=msgspec.json.encode([first, *stages[1:]]).decode())

    return [
        replace(packed, body=bytes(flipped)),
        replace(packed, body=packed.body[:-1]),
        replace(packed, body=b""),
        replace(packed, body=compress(b"[]")),
        replace(packed, body=compress(msgspec.json.encode({"themes": body["themes"]}))),
        replace(packed, body=compress(msgspec.json.encode(body | {"themes": [*range(25)]}))),
        themed(sub_themes="abc"),
        themed(traveler_types=5),
        themed(traveler_types=[1]),
        themed(confidence="high"),
        replace(packed, body=packed.body + packed.body),
        replace(packed, stages="{}"),
        replace(packed, stages='[["a"]]'),
        staged(STAGE_VALUES.index("llm_calls"), 10**30),
        staged(STAGE_VALUES.index("prompt_tokens"), -1),
        staged(STAGE_VALUES.index("cost_usd"), -0.5),
        replace(packed, usage=Usage(llm_calls=-5)),
        replace(packed, usage=Usage(bytes_raw=2**63)),
        replace(packed, usage=Usage(saved_usd=float("nan"))),
        replace(packed, missing="["),
        replace(packed, theme_count=24),
        replace(packed, lacking=1),
        replace(packed, quality=0.125),
        replace(packed, created_at=float("nan")),
        replace(packed, quality=float("inf")),
    ]


@pytest.mark.parametrize("number", range(25))
def test_garbage_is_refused_by_name(number: int) -> None:
    packed = pack_profile(_profile())
    assert checked(packed, TOWN.id)[0] is packed
    bad = _garbled(packed)
    assert len(bad) == 25
    with pytest.raises(WireError, match=r"."):
        checked(bad[number], TOWN.id)


def test_a_profile_takes_a_third_of_its_json() -> None:
    """25 themes of English prose: 31 KB of JSON."""
    (_, (result, *_)) = full_results(2)
    assert result.profile
    whole = len(msgspec.json.encode(profile_in(result)))
    assert len(msgspec.msgpack.encode(result.profile)) < whole * 0.4
