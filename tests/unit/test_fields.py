"""Names of fields, and the stages that they mean."""

from dataclasses import replace

import pytest

from tasks.errors import ConfigError
from workers.pipeline.fields import canonical, fields_of, stages_for
from workers.pipeline.prompts import load_stages

STAGES = load_stages()
FINDING = ["discover.adventure", "discover.culture", "discover.entertainment", "discover.food", "discover.luxury"]


def test_every_stage_makes_a_field_and_those_that_find_themes_make_one() -> None:
    assert fields_of(STAGES) == [
        "themes", "confidence", "price", "seasonality", "travellers", "authenticity", "overlap", "quality",
        "nano_experiences", "rationale", "selling_points", "sub_themes",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "asked", "kept"),
    [
        (["themes"], FINDING, ("themes",)),
        (["discover.*"], FINDING, ("themes",)),
        (["price"], ["analyse.price", *FINDING], ("themes", "price")),
        (["analyse.price", "themes"], ["analyse.price", *FINDING], ("themes", "price")),
        (["a*e.price", "overlap"], ["analyse.price", "assess.overlap", *FINDING], ("themes", "price", "overlap")),
        (["discover.food"], ["discover.food"], ("discover.food",)),
        (["discover.food", "price"], ["analyse.price", *FINDING], ("themes", "price")),
    ],
)
def test_a_field_means_its_stages_and_what_they_need(
    wanted: list[str], asked: list[str], kept: tuple[str, ...]
) -> None:
    assert [stage.name for stage in stages_for(STAGES, wanted)] == asked
    assert canonical(STAGES, wanted) == kept
    assert stages_for(STAGES, kept) == stages_for(STAGES, wanted)


@pytest.mark.parametrize("wanted", [[], ["*"], ["analyse.*", "assess.*", "enhance.*"], fields_of(STAGES)])
def test_all_fields_are_kept_as_none(wanted: list[str]) -> None:
    assert stages_for(STAGES, wanted) == STAGES
    assert canonical(STAGES, wanted) == ()


@pytest.mark.parametrize("wanted", [["prize"], ["price", "analyze.*"], [""], ["price_point"]])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(wanted: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^no field '.*'; known: themes, confidence, price, .*, sub_themes$"):
        canonical(STAGES, wanted)


def test_a_need_that_is_no_stage_is_refused_for_all_fields_too() -> None:
    lost = [replace(STAGES[0], needs=("nowhere",)), *STAGES[1:]]
    with pytest.raises(ConfigError, match="needs 'nowhere', but there is no such stage"):
        stages_for(lost, [])
