"""Numbers with their nouns, and names that are nearly right."""

import pytest

from tasks.texts import NOTHING, count, duration, folded, known_name, nearest
from workers.observe.format import amount_of


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (0, "destination", "0 destinations"),
        (1, "destination", "1 destination"),
        (2, "destination", "2 destinations"),
        (1_234_567, "call", "1,234,567 calls"),
        (1, "entry", "1 entry"),
        (2, "entry", "2 entries"),
        (2, "day", "2 days"),
        (2, "process", "2 processes"),
        (1, "process", "1 process"),
        (2, "other reason", "2 other reasons"),
        (2, "cache hit", "2 cache hits"),
    ],
)
def test_a_noun_is_singular_for_one_alone(number: int, noun: str, said: str) -> None:
    assert count(number, noun) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, NOTHING), (0, "0 s"), (5e-5, "0.05 ms"), (0.00994, "9.9 ms"), (0.00996, "10 ms"), (0.406, "406 ms"),
        (0.9996, "1 s"), (9.4, "9.4 s"), (42, "42 s"), (59.4, "59 s"), (59.6, "1m 00s"), (729, "12m 09s"),
        (3599.4, "59m 59s"), (3599.6, "1h 00m"), (5940, "1h 39m"), (86_371, "1d 00h"), (183_600, "2d 03h"),
        (1e8, "1,157d 10h"),
    ],
)  # fmt: skip
def test_a_duration_has_one_form_and_no_invented_digits(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_a_mean_that_is_next_to_one_is_one() -> None:
    assert [amount_of(mean, "lane") for mean in (1.004, 1.5, 12.01)] == ["1 lane", "1.5 lanes", "12 lanes"]


def test_case_and_the_encoding_of_a_letter_do_not_matter() -> None:
    assert folded("STRASSE") == folded("straße")
    assert folded("E\u0301VORA") == folded("évora")
    assert known_name("Country", ["name", "country"]) == "country"
    assert known_name("tier", ["TIER", "tier"]) == "tier"
    assert known_name("x", ["name"]) is None


def test_the_nearest_name_and_some_of_all_are_said() -> None:
    assert nearest("FOOOD", ["culture", "Food"]) == "; did you mean Food? (known: culture, Food)"
    assert nearest("x", [], "columns") == "; columns: none"
    assert nearest("q", [str(n) for n in range(11)]) == "; known: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …"
