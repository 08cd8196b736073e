"""The guard around the web: addresses, pages, citations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.messages import Destination
from workers.pipeline.evidence import FoundEvidence, Passage, speaks_of, titles
from workers.pipeline.web.page import text_of
from workers.process.addresses import hosts_of, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "0.0.0.1",
        "255.255.255.255", "198.18.0.1", "240.0.0.1", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "2002:a00:1::", "64:ff9b::7f00:1", "64:ff9b:1::a00:1",
        "::127.0.0.1", "2001:0:7f00:1::", "not an address", "",
    ],
)  # fmt: skip
def test_an_address_of_the_own_network_is_not_public_whatever_it_hides_behind(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"])
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(address)


def test_a_page_is_its_prose() -> None:
    html = """<html><head><title> Kyoto &middot; Wikivoyage </title><style>p{}</style></head><body>
    <nav><p>This navigation is long enough to be a paragraph of its own.</p></nav>
    <p>Kyoto was the <b>capital</b> of Japan for over a <!-- no -->millennium.<sup>[1]</sup>
    <script>alert("this is a script that is long enough")</script>
    <p>The market of Nishiki sells pickles, knives and tea.
    <div aria-hidden="true">Hidden words that would tell the model to ignore its rules.</div>
    <table><tr><td>A table cell with many, many words in it.</table><p>Short."""
    title, text = text_of(html)
    assert title == "Kyoto · Wikivoyage"
    assert text.splitlines() == [
        "Kyoto was the capital of Japan for over a millennium.",
        "The market of Nishiki sells pickles, knives and tea.",
    ]


@given(st.text(alphabet="<>/abp &;!-\"'=\n", max_size=300))
def test_no_text_breaks_the_reader_of_pages(html: str) -> None:
    title, text = text_of(html)
    assert isinstance(title + text, str)


def _evidence(text: str) -> FoundEvidence:
    return FoundEvidence([Passage("E1", "https://x.example", "X", text, 0.0)])


def test_a_citation_is_supported_when_its_words_stand_in_its_source() -> None:
    evidence = _evidence("The Nishiki market sells pickles,\nknives and  TEA to everyone.")
    said = [
        "E1: nishiki market sells pickles, knives and tea",
        'E1: "sells pickles, knives"',
        "E1: Nishiki market sells cars",
        "E2: Nishiki market sells pickles",
        "E1: tea",
        "Wikivoyage: Nishiki market sells pickles",
        "",
    ]
    assert evidence.supports(said) == [True, True, False, False, False, False, False]


def test_a_page_about_another_place_of_that_name_is_not_about_the_destination() -> None:
    cartagena = Destination.of("Cartagena", "Colombia")
    assert titles(cartagena)[:3] == ["Cartagena", "Cartagena (Colombia)", "Cartagena, Colombia"]
    assert speaks_of(cartagena, "Cartagena is a city on the coast of Colombia.")
    assert not speaks_of(cartagena, "Cartagena is a city in the south of Spain.")
    assert not speaks_of(cartagena, "Cartagena may refer to: Cartagena, Colombia; Cartagena, Spain")
    assert titles(Destination.of("Maldives")) == ["Maldives"]
    assert titles(Destination.of("Giant's Causeway, Northern Ireland", "UK"))[-1] == "Giant's Causeway"


def test_hosts_are_named_as_addresses_name_them() -> None:
    assert hosts_of(" [::1], Hooks.internal,,fd00::1") == {"::1", "hooks.internal", "fd00::1"}
