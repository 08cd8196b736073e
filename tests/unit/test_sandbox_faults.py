import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import ConfigError
from workers.sandbox.faults import KINDS, Fault, choose_fault, parse_fault, parse_latency


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_written(kind: str) -> None:
    assert parse_fault(f"{kind}=0.5") == Fault(kind=kind, rate=0.5)


@given(
    kind=st.sampled_from(sorted(KINDS)),
    rate=st.sampled_from([0.0, 0.25, 1.0]),
    retry_after=st.none() | st.just("date") | st.sampled_from([0.0, 1.5, 30.0]),
    match=st.sampled_from(["", "Paris", "of the kind **food**"]),
    times=st.none() | st.integers(0, 9),
)
def test_a_rule_reads_back_as_it_was_written(
    kind: str, rate: float, retry_after: float | str | None, match: str, times: int | None
) -> None:
    fault = Fault(kind=kind, rate=rate, retry_after=retry_after, match=match, times=times)
    assert parse_fault(str(fault)) == fault


@pytest.mark.parametrize(
    "text",
    [
        *("", "429", "teapot=1", "429=2", "429=-1", "429=nan", "429=x"),
        *("429=1,retry_after=soon", "429=1,time=3", "429=1,times=x", "drip=1,interval=-1", "429=1,times=-1"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--fault {text}"):
        parse_fault(text)


def chosen(fault: str, *, text: str = "", digest: str = "d", seed: int = 0, occurrence: int = 0) -> bool:
    rules = [parse_fault(fault)]
    return choose_fault(rules, text=text, digest=digest, seed=seed, occurrence=occurrence) is not None


def test_rates_hold_over_many_prompts_and_differ_between_occurrences() -> None:
    hits = [chosen("500=0.3", digest=str(number)) for number in range(4000)]
    assert 0.27 < statistics.mean(hits) < 0.33
    assert hits == [chosen("500=0.3", digest=str(number)) for number in range(4000)]
    again = [chosen("500=0.3", digest=str(number), occurrence=1) for number in range(4000)]
    both = statistics.mean(first and second for first, second in zip(hits, again, strict=True))
    assert 0.06 < both < 0.12


def test_rate_one_is_always_and_rate_zero_never() -> None:
    assert all(chosen("500=1", digest=str(number)) for number in range(500))
    assert not any(chosen("500=0", digest=str(number)) for number in range(500))


def test_match_and_times_restrict_a_rule() -> None:
    assert chosen("500=1,match=Paris", text="in Paris, France")
    assert not chosen("500=1,match=Paris", text="in Kyoto")
    assert [chosen("500=1,times=2", occurrence=number) for number in range(4)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("50ms", 0.05), ("0.2", 0.2), ("2s", 2), ("lognormal:1s:0", 1)]
)
def test_fixed_latencies_are_read_in_their_unit(text: str, seconds: float) -> None:
    assert parse_latency(text).seconds("key") == seconds


def test_lognormal_latencies_have_their_median_and_spread_and_repeat() -> None:
    latency = parse_latency("lognormal:250ms:0.4")
    drawn = sorted(latency.seconds(str(number)) for number in range(4000))
    assert 0.24 < statistics.median(drawn) < 0.26
    assert 1.4 < drawn[3365] / statistics.median(drawn) < 1.6  # one sigma up: exp(0.4) = 1.49
    assert latency.seconds("7") == latency.seconds("7")


@pytest.mark.parametrize("text", ["", "fast", "-1", "1m", "lognormal:1s", "lognormal:1s:-1", "1.2.3"])
def test_a_latency_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--latency"):
        parse_latency(text)
