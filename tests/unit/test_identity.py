"""Which rows are one destination, which may be, and what the report says of both."""

import io
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import InputError
from tasks.identity import SAME_PLACE_KM, destination_id, distance_km, nearby_ids, own_id
from tasks.inputs import duplicates
from tasks.inputs.likely_duplicates import MAX_COMPARED
from tasks.inputs.reader import Reader, ReadReport, from_iterable
from tasks.messages import Destination


def read(data: str, name: str = "a.csv", **options: Any) -> tuple[list[Destination], ReadReport]:
    file = io.BytesIO(data.encode())
    file.name = name  # type: ignore[attr-defined]
    with Reader(file, **options) as reader:
        return list(reader), reader.report


def pairs(report: ReadReport) -> list[tuple[int, int]]:
    return [(one.first_line, one.line) for one in report.likely_duplicate_rows]


OREGON, MAINE = "45.52,-122.68", "43.66,-70.26"
US = "United States"


@pytest.mark.parametrize(
    "rows",
    [
        f"name,country,region,lat,lon\nPortland,{US},Oregon,{OREGON}\nPortland,{US},Maine,{MAINE}\n",
        f"name,country,region\nPortland,{US},Oregon\nPortland,{US},Maine\n",
        f"name,country,lat,lon\nPortland,{US},{OREGON}\nPortland,{US},{MAINE}\n",
        f"name,lat,lon\nPortland,{OREGON}\nPortland,{MAINE}\n",
        # Many villages of one region have one name: https://de.wikipedia.org/wiki/Neuhaus
        "name,country,region,lat,lon\nNeuhaus,Germany,Bavaria,49.69,11.55\nNeuhaus,Germany,Bavaria,48.45,13.42\n",
        # Only one row says which: nothing shows that it is the other's place.
        f"name,country,lat,lon\nPortland,{US},,\nPortland,{US},{MAINE}\n",
        f"name,country,region\nPortland,{US},\nPortland,{US},Maine\n",
        f"id,name,country\n7,Portland,{US}\n8,Portland,{US}\n",
        "name,country,qid\nPortland,United States,Q6106\nPortland,United States,Q49201\n",
        # On both sides of 180 degrees, 1,000 km apart.
        "name,lat,lon\nVuda,-17.7,176\nVuda,-17.7,-174\n",
    ],
)
def test_two_places_of_one_name_are_two_destinations(rows: str) -> None:
    destinations, report = read(rows)
    assert len({one.id for one in destinations}) == 2
    assert (report.duplicates, report.rejected) == (0, 0)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (
            "name,country\nParis,France\n PARIS , france\n",
            "same name and country; what else differs is that of the first",
        ),
        ("name,country\nParis,France\nParis,France\n", "same name and country"),
        ("name,country,region\nParis,France,IdF\nParis,France,IdF\n", "same name, country and region"),
        ("name,lat,lon\nKyoto,35.0116,135.7681\nKyoto,35.0211,135.7556\n", "same name, 1.6 km apart"),
        # Across the border of two cells, across 180 degrees, and at the pole.
        ("name,lat,lon\nX,0.00001,0.00001\nX,-0.00001,-0.00001\n", "same name"),
        ("name,lat,lon\nTaveuni,-16.85,179.99\nTaveuni,-16.85,-179.99\n", "same name, 2.1 km apart"),
        ("name,lat,lon\nPole,90,0\nPole,89.95,120\n", "same name, 5.6 km apart"),
        (
            "id,name,country\n7,Lisboa,Portugal\n7,Lisbon,Portugal\n",
            "same id 7; what else differs is that of the first",
        ),
        ("name,Wikidata ID\nLisboa,Q597\nLisbon,http://www.wikidata.org/entity/Q597\n", "same Wikidata ID Q597"),
        ("name,geonameid\nWien,2761369\nVienna,https://www.geonames.org/2761369/wien.html\n", "same geonameid 2761369"),
    ],
)
def test_one_place_is_asked_once_and_its_other_row_is_listed(rows: str, why: str) -> None:
    destinations, report = read(rows)
    assert len(destinations) == report.accepted == report.duplicates == 1
    (found,) = report.duplicate_rows
    assert (found.line, found.first_line) == (3, 2)
    assert found.why.startswith(why)


def test_places_of_one_name_are_told_apart_however_many_there_are() -> None:
    towns = [(lat, lon) for lat in range(-80, 80, 4) for lon in range(-180, 180, 4)]
    rows = "".join(f"San Antonio,{lat},{lon}\nSan Antonio,{lat + 0.1},{lon}\n" for lat, lon in towns)
    began = time.process_time()
    destinations, report = read(f"name,lat,lon\n{rows}")
    assert time.process_time() - began < 120
    assert len({one.id for one in destinations}) == len(towns)
    assert report.duplicates == len(towns)
    assert all(one.line == one.first_line + 1 for one in report.duplicate_rows)


def test_the_same_file_gives_the_same_ids_and_a_row_its_own_whatever_stands_beside_it() -> None:
    rows = [
        "Portland,United States,45.52,-122.68",
        "Portland,United States,43.66,-70.26",
        "Portland,,,",
        "Oslo,Norway,,",
    ]
    ids = [one.id for one in read("name,country,lat,lon\n" + "\n".join(rows))[0]]
    assert [one.id for one in read("name,country,lat,lon\n" + "\n".join(rows))[0]] == ids
    assert [read(f"name,country,lat,lon\n{row}\n")[0][0].id for row in rows] == ids
    assert [one.id for one in read("name,country,lat,lon\n" + "\n".join(reversed(rows)))[0]] == ids[::-1]


def test_a_users_own_number_means_another_place_in_another_file_and_a_public_id_the_same() -> None:
    (paris,), _ = read("id,name\n1,Paris\n")
    (rome,), _ = read("id,name\n1,Rome\n")
    assert paris.id != rome.id
    (lisboa,), _ = read("wikidata,name\nQ597,Lisboa\n")
    (lisbon,), _ = read("QID,name,country\nhttps://www.wikidata.org/wiki/q597,Lisbon,Portugal\n")
    assert lisboa.id == lisbon.id


def test_a_users_own_id_goes_before_a_public_one_and_a_named_column_before_both() -> None:
    rows = "id,wikidata,code,name\n1,Q1,a,Rome\n2,Q1,a,Roma\n"
    assert len(read(rows)[0]) == 2
    assert read(rows, id_column="Code")[1].duplicate_rows[0].why.startswith("same code a")
    assert read(rows, id_column="wikidata")[1].duplicates == 1
    # What is not an id of the catalogue is none.
    assert own_id({"wikidata": "yes"}) is None
    assert own_id({"wikidata": "http://www.wikidata.org/entity/Q90"}) == ("wikidata", "wikidata", "Q90")


@pytest.mark.parametrize(
    "word", ["N/A", "#N/A", "NaN", "null", "None", "-", "?", "0", "0.0", "#REF!", r"\N", "1.2E+10", "TBD"]
)
def test_what_stands_for_no_id_makes_no_two_places_one(word: str) -> None:
    destinations, report = read(f"id,name,country\n{word},Rome,Italy\n{word},Paris,France\n9,Oslo,Norway\n")
    assert [one.name for one in destinations] == ["Rome", "Paris", "Oslo"]
    assert (report.duplicates, destinations[0].id) == (0, destination_id("Rome", "Italy"))


def test_a_named_id_column_that_is_not_there_is_said_at_once() -> None:
    with pytest.raises(InputError, match="a.csv: no column 'kode'; the header has: code, name"):
        read("code,name\n1,Rome\n", id_column="kode")
    _, report = read('{"code": 1, "name": "Rome"}\n{"name": "Oslo"}\n', "a.jsonl", id_column="code")
    assert [(row.line, row.reason) for row in report.bad] == [(2, "no code (--id-column)")]


def test_the_id_of_a_row_is_kept_with_it() -> None:
    (rome,), _ = read('{"id": 41, "name": "Rome"}\n', "a.jsonl")
    assert rome.extra == {"id": "41"}


_latitudes, _longitudes = st.floats(-89.9, 89.9), st.floats(-180, 180)


@given(_latitudes, _longitudes, st.floats(-0.05, 0.05), st.floats(-0.05, 0.05))
def test_slightly_other_coordinates_give_the_same_id_or_one_of_the_nearby_ids(
    lat: float, lon: float, up: float, right: float
) -> None:
    there = (max(-90.0, min(90.0, lat + up)), (lon + right + 180) % 360 - 180)
    id_ = destination_id("Kyoto", "Japan", None, *there)
    assert id_ in {destination_id("Kyoto", "Japan", None, lat, lon), *nearby_ids("Kyoto", "Japan", None, lat, lon)}


@given(_latitudes, _longitudes, _latitudes, _longitudes)
def test_places_that_are_far_apart_share_no_id(lat: float, lon: float, other_lat: float, other_lon: float) -> None:
    if distance_km((lat, lon), (other_lat, other_lon)) > SAME_PLACE_KM:
        ids = {destination_id("X", None, None, lat, lon), *nearby_ids("X", None, None, lat, lon)}
        assert destination_id("X", None, None, other_lat, other_lon) not in ids


# --- may be the same place ---


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ("Córdoba,Spain,,,\nCordoba,Spain,,,", "accents"),
        ("Córdoba,España,,,\nCordoba,,,,", "accents"),
        ("Xi'an,China,,,\nXi\u2019an,China,,,", "punctuation"),
        ("Łódź,Poland,,,\nLodz,Poland,,,", "accents"),
        ("Saint-Malo,France,,,\nSaint Malo,France,,,", "punctuation"),
        ("Lisboa,Portugal,,38.7223,-9.1393\nLisbon,Portugal,,38.7167,-9.1333", "0.8 km apart"),
        ("Kyoto,Japan,,35.0116,135.7681\n京都,日本,,35.0117,135.7683", "0.0 km apart"),
        ("Wien,Austria,,48.2083,16.3725\nVienna,Austria,,48.21,16.37", "0.3 km apart"),
        ("Taveuni,Fiji,,-16.85,179.99\nSomosomo,Fiji,,-16.85,-179.99", "2.1 km apart"),
        ("Portland,United States,,,\nPortland,United States,Maine,,", "only one of them says more"),
        ("Portland,United States,,,\nPortland,United States,,43.66,-70.26", "only one of them says more"),
    ],
)
def test_likely_duplicates_stay_two_and_are_named_with_both_lines(rows: str, why: str) -> None:
    destinations, report = read(f"name,country,region,lat,lon\n{rows}\n")
    assert (len(destinations), report.duplicates, report.likely_duplicates) == (2, 0, 1)
    assert pairs(report) == [(2, 3)]
    assert why in report.likely_duplicate_rows[0].why


def test_rows_with_other_ids_and_one_name_may_be_one_place() -> None:
    _, report = read("id,name,country\nA1,Rome,Italy\nA2,Rome,Italy\n")
    assert report.likely_duplicate_rows[0].why == "the same name, but id A1 and id A2"


def test_rows_with_ids_of_their_own_that_share_a_public_one_may_be_one_place() -> None:
    rows = "id,name,wikidata\n1,Lisboa,Q597\n2,Rome,Q220\n3,Lisbon,http://www.wikidata.org/entity/Q597\n4,Oslo,\n"
    destinations, report = read(rows)
    assert (len(destinations), pairs(report)) == (4, [(2, 4)])
    assert report.likely_duplicate_rows[0].why == "the same Wikidata or GeoNames id"


@pytest.mark.parametrize(
    "rows",
    [
        "Portland,United States,Oregon,,\nPortland,United States,Maine,,",
        "Portland,United States,,45.52,-122.68\nPortland,United States,,43.66,-70.26",
        "Córdoba,Argentina,,,\nCordoba,Spain,,,",
        "Naples,Italy,,40.85,14.27\nPompeii,Italy,,40.75,14.49",
        # Districts of one city: near each other, and no one of them is another.
        "Marais,,,48.859,2.361\nBastille,,,48.853,2.369\nPigalle,,,48.882,2.337\nBelleville,,,48.872,2.385",
        "Paris 1er,France,,48.862,2.336\nParis 2e,France,,48.868,2.343\nParis 3e,France,,48.863,2.36",
        "Montmartre Nord,France,,48.89,2.34\nMontmartre Sud,France,,48.88,2.34\nOpéra,France,,48.87,2.33",
    ],
)
def test_what_something_tells_apart_is_not_named(rows: str) -> None:
    _, report = read(f"name,country,region,lat,lon\n{rows}\n")
    assert (report.likely_duplicates, report.duplicates) == (0, 0)


def test_twins_among_many_near_places_are_found_by_how_they_are_spelt() -> None:
    districts = "".join(f"{name},38.72{number},-9.14\n" for number, name in enumerate(("Alfama", "Chiado", "Graça")))
    _, report = read(f"name,lat,lon\n{districts}Lisboa,38.7223,-9.1393\nLisbon,38.7167,-9.1333\n")
    assert pairs(report) == [(5, 6)]


def test_places_on_the_border_of_any_two_cubes_are_compared_with_others_and_not_with_themselves() -> None:
    # 10 km west of the middle of the Earth as seen from the equator: between the cubes -1 and -2.
    _, report = read("name,lat,lon\nAlfama,0.01,90.0899\nBelem,0.011,90.0901\n")
    assert pairs(report) == [(2, 3)]


def test_a_crowd_in_one_place_costs_no_more_than_its_reading() -> None:
    rows = "".join(f"Café {number} {'é' * (number % 7)},48.85,2.35\n" for number in range(8_000))
    began = time.process_time()
    _, report = read(f"name,lat,lon\n{rows}")
    assert time.process_time() - began < 30
    same = "".join(f"id{number},Rome\n" for number in range(2_000))
    _, report = read(f"id,name\n{same}")
    assert report.likely_duplicates == MAX_COMPARED - 1


def test_twins_far_apart_in_a_large_file_are_found_after_the_rows_have_moved_to_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(duplicates, "KEYS_IN_MEMORY", 2_000)
    rows = "".join(f"City {number},Nowhere\n" for number in range(duplicates.KEYS_IN_MEMORY + 1_000))
    _, report = read(f"name,country\nCórdoba,Spain\n{rows}Cordoba,Spain\ncórdoba,spain\n")
    last = duplicates.KEYS_IN_MEMORY + 1_003
    assert pairs(report) == [(2, last)]
    assert [(one.line, one.first_line) for one in report.duplicate_rows] == [(last + 1, 2)]


def test_elements_of_one_line_are_compared_too() -> None:
    _, report = read('["Córdoba, Spain", "Cordoba, Spain", "Córdoba, Spain"]', "a.json")
    assert (report.accepted, report.duplicates, pairs(report)) == (2, 1, [(1, 1)])


# --- further columns ---


def test_columns_that_are_not_sent_are_named_once() -> None:
    rows = "id,name,type,Population\n1,Malta,island,9\n2,Rome,city,8\n"
    assert read(rows)[1].unsent_columns == ["type", "Population"]
    _, report = read(rows, columns=["population"])
    assert (report.unsent_columns, report.absent_columns) == (["type"], [])
    _, report = read('{"name": "Malta", "type": "island"}\n', "a.jsonl", columns=["kind"])
    assert (report.unsent_columns, report.absent_columns) == (["type"], ["kind"])
    with pytest.raises(InputError, match="no column 'kind'; the header has: id, name, type, Population"):
        read(rows, columns=["kind"])


# --- bounds ---


@pytest.mark.parametrize(
    ("data", "name", "said"),
    [
        ("name," + ",".join(f"c{n}" for n in range(100_000)) + "\nRome\n", "a.csv", "100001 columns, at most 1000"),
        (",".join(f"c{n}" for n in range(100_000)) + "\n", "a.csv", "100000 columns, at most 1000"),
        ("name" + "\t" * 100_000 + "\nRome\n", "a", "100001 columns, at most 1000"),
        ("name,x\nRome" + ",y" * 100_000 + "\n", "a.csv", "100001 columns, at most 1000"),
        (json.dumps({f"c{n}": n for n in range(50_000)}) + "\n", "a.jsonl", "50000 columns, at most 1000"),
        (json.dumps([{"name": "Rome"} | {f"c{n}": n for n in range(50_000)}]), "a.json", "50001 columns, at most 1000"),
        (json.dumps([{"name": "Rome", "x": {f"c{n}": n for n in range(50_000)}}]), "a.json", "at most 2000 are kept"),
        ('[{"name": ' + "[" * 500_000 + "]" * 500_000 + "}]", "a.json", "not valid JSON"),
        ('{"name": ' + '{"a":' * 150_000 + "1" + "}" * 150_000 + "}\n", "a.jsonl", "not valid JSON"),
        ("name\n" + "x" * 1_000_000 + "\n", "a.csv", "1000000 characters, at most 200"),
        ("name\n" + '"' * 1_000_001 + "\n", "a.csv", "line 2"),
        ("[" + "}" * 500_000, "a.json", "a brace that was not opened"),
        ("[" + '"a" ' * 200_000, "a.json", "expected a comma"),
    ],
)
def test_a_shape_without_bound_is_refused_at_once(data: str, name: str, said: str) -> None:
    began = time.process_time()
    try:
        _, report = read(data, name)
    except InputError as exc:
        message = str(exc)
    else:
        message = report.bad[0].reason
    assert said in message
    # Linear in a megabyte takes less than a second; what this guards against takes a minute or more.
    assert time.process_time() - began < 20


def test_columns_with_one_title_keep_their_values() -> None:
    (rome,), _ = read("name,a,a_3,a,\nRome,1,2,3,4\n")
    assert list(rome.extra.values()) == ["1", "2", "3", "4"]


def test_python_values_follow_the_same_rule() -> None:
    items = [
        {"name": "Portland", "lat": 45.52, "lon": -122.68}, {"name": "Portland", "lat": 43.66, "lon": -70.26},
        {"name": "Portland", "lat": 43.7, "lon": -70.2}, {"id": 1, "name": "Lisboa"}, {"id": 1, "name": "Lisbon"},
        Destination.of("Rome"), "Rome", Destination.of("Rome"),
    ]  # fmt: skip
    assert [(one.name, one.lat) for one in from_iterable(items)] == [
        ("Portland", 45.52), ("Portland", 43.66), ("Lisboa", None), ("Rome", None),
    ]  # fmt: skip
