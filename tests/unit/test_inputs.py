"""Files of destinations as people have them: read as meant, or refused with the mend; never guessed."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from tasks.errors import InputError
from tasks.inputs.reader import NUMBERS_ALLOWED, Reader, ReadReport
from tasks.inputs.titles import role_of
from tasks.messages import Destination


def read(data: bytes | str, name: str = "a.csv", **options: Any) -> tuple[list[Destination], ReadReport]:
    file = io.BytesIO(data if isinstance(data, bytes) else data.encode())
    file.name = name  # type: ignore[attr-defined]
    with Reader(file, **options) as reader:
        return list(reader), reader.report


def labels(data: bytes | str, name: str = "a.csv", **options: Any) -> list[str]:
    return [one.label for one in read(data, name, **options)[0]]


def refusal(data: bytes | str, name: str = "a.csv", **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(data, name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BOTH = ["Kyoto, Japan", "Paris, France"]


# --- columns ---


@pytest.mark.parametrize(
    "header",
    [
        "id,destination_name,country", "id,City Name,Country Code", "id,city_name,country_name", "x,Stadt,Land",
        "x,Ville,Pays", "x,Ciudad,País", "x,Città,Paese", "x,Cidade,País", "x,cityLabel,countryLabel",
        "x,cityName,countryName",
        "x,Name of city,Nation", "x,TOWN,COUNTRY", "x,Ort,Staat", "id,name_en,country_iso2", "#,name,country",
        "x,Destination City,Destination Country",
        "x,display_name,Name of the country", "x,Destination (City),Countries",
        "x,Cities,Land", "x,Städte,Länder", "x,destination_name,destination_country", "x,cityname,countrycode",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.csv", "standard input", "a.txt"])
def test_a_header_is_a_header_in_the_words_that_people_use(header: str, name: str) -> None:
    assert labels(f"{header}\n1,Kyoto,Japan\n2,Paris,France\n", name) == BOTH


def test_a_german_table_gives_its_region() -> None:
    (munich,), report = read("Stadt;Land;Bundesland;Einwohner\nMünchen;Deutschland;Bayern;1,5 Mio\n")
    assert (munich.label, munich.region) == ("München, Deutschland", "Bayern")
    assert report.unsent_columns == ["Einwohner"]


def test_the_better_title_wins_and_a_code_is_taken_where_no_name_is() -> None:
    (one,), _ = read("country_code,city,country,name_en\nJP,京都,Japan,Kyoto\n")
    assert (one.name, one.country, one.extra) == ("京都", "Japan", {"country_code": "JP", "name_en": "Kyoto"})
    (one,), _ = read("city,Country Code,city code\nKyoto,JP,UKY\n")
    assert (one.label, one.extra) == ("Kyoto, JP", {"city code": "UKY"})
    (one,), _ = read("city,city_ascii,lat,lng,country,iso2,admin_name,id\nKyōto,Kyoto,35.0,135.7,Japan,JP,Kyōto,7\n")
    assert (one.label, one.region, one.lat) == ("Kyōto, Japan", "Kyōto", 35.0)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("Kyoto,Japan\nParis,France\n", "a.csv"),
        ("code,dest,country\n1,Kyoto,Japan\n", "a.csv"),
        ("code,dest,country\n1,Kyoto,Japan\n", "standard input"),
        ("1,Kyoto,Japan\n2,Paris,France\n", "standard input"),
        ("Kyoto;Japan\nParis;France\n", "standard input"),
        ("a\tb\nKyoto\tJapan\n", "a.tsv"),
        ("lat,lon,country\n1,2,Japan\n", "a.csv"),
    ],
)
def test_a_table_whose_names_are_not_known_is_refused_with_the_mend(data: str, name: str) -> None:
    message = refusal(data, name)
    assert message.startswith(f"{name}: line 1: which column holds the names? Columns: ")
    assert "Say --map name=COLUMN" in message


def test_map_says_which_columns_are_meant() -> None:
    rows = "code,dest,ctry,breite,laenge\n1,Kyoto,Japan,35,135.7\n2,Paris,France,48.8,2.3\n"
    found, report = read(rows, mapped=["name=Dest", "country=ctry", "lat=breite", "lon=laenge", "id=code"])
    assert [one.label for one in found] == BOTH
    assert (found[0].lat, found[0].lon, found[0].extra) == (35.0, 135.7, {"code": "1"})
    assert report.unsent_columns == []
    assert labels("1,Kyoto,Japan\n2,Paris,France\n", mapped=["name=2", "country=3"]) == BOTH
    assert labels("1,Kyoto,Japan\n2,Paris,France\n", "standard input", mapped=["name=2", "country=3"]) == BOTH
    jsonl = '{"dest": "Kyoto", "name": "x", "ctry": "Japan"}\n{"dest": "Paris", "ctry": "France"}\n'
    assert labels(jsonl, "a.jsonl", mapped=["name=dest", "country=ctry"]) == BOTH
    assert "no column 'nix' (--map name=…); columns: code, dest" in refusal(rows, mapped=["name=nix"])
    assert "no column 'nix'" in refusal(rows, mapped=["name=dest", "country=nix"])
    for wrong in ("dest", "planet=dest", "name="):
        assert "expected name, country, region, lat, lon or id" in refusal(rows, mapped=[wrong])


def test_a_number_names_a_column_of_a_table_with_titles_too() -> None:
    assert labels("id,dest,country\n1,Kyoto,Japan\n2,Paris,France\n", mapped=["name=2"]) == BOTH


@pytest.mark.parametrize(
    "title", ["City Population", "country_count", "state of repair", "cityscape", "the city", "Name day", "city lat"]
)
def test_a_title_with_other_words_is_none_of_ours(title: str) -> None:
    assert role_of(title) is None


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "standard input"])
@pytest.mark.parametrize("title", ["Destinations", "Orte", "name", "City Name"])
def test_a_title_above_a_list_is_no_destination(title: str, name: str) -> None:
    assert labels(f"{title}\nKyoto\nParis\n", name) == ["Kyoto", "Paris"]


# --- names that are none ---


def test_names_that_are_numbers_throughout_are_refused_and_a_place_that_is_called_by_a_number_is_not() -> None:
    numbers = "".join(f"{number},France\n" for number in range(1, 3))
    assert "a.csv: line 2: the names (column 'city') are numbers (1, 2)" in refusal(f"city,country\n{numbers}")
    assert "--map name=COLUMN" in refusal(f"city,country\n{numbers}")
    many = "".join(f"{number}\n" for number in range(1_000_000))
    assert "are numbers (0, 1, 2)" in refusal(many, "a.txt")
    assert "are numbers (Q90, Q220)" in refusal("Q90\nQ220\n", "a.txt")
    assert labels("name,country\n1770,Australia\nKyoto,Japan\n") == ["1770, Australia", "Kyoto, Japan"]
    rows = "".join(f"{number}\n" for number in range(NUMBERS_ALLOWED - 1))
    assert len(labels(f"name\n{rows}Kyoto\n")) == NUMBERS_ALLOWED
    assert labels("city,country\n1,France\n", mapped=["name=city"]) == ["1, France"]


_NO_NAMES = [
    "-", "?", ".", "\u2026", "\u2014", "???", "\uff0d", "null", "NULL", "<null>", "(Null)", "N/A", "n/a", "#N/A",
    "n.a.", "\uff2e\uff0f\uff21", "TBD", "t.b.d.", "Unknown", "[unknown]", "\uff55nknow\uff4e", "unbekannt",
    "not available", "(none)", "#REF!", "\\N", "<NA>", "-none-",
]  # fmt: skip


@pytest.mark.parametrize("word", _NO_NAMES)
def test_what_stands_for_no_name_is_refused_whatever_else_its_row_says(word: str) -> None:
    for data, name in (
        (f"name,country,lat,lon\nKyoto,Japan,,\n{word},Japan,35,135\n", "a.csv"),
        (f"Kyoto, Japan\n{word}, Japan\n", "a.txt" if word[0] not in "#-" else "a.jsonl"),
        ("\n".join(json.dumps({"name": each, "country": "Japan"}) for each in ("Kyoto", word)), "a.jsonl"),
        (json.dumps(["Kyoto, Japan", word]), "a.json"),
    ):
        if name == "a.jsonl" and not data.startswith("{"):
            continue
        found, report = read(data, name)
        assert [one.label for one in found] == ["Kyoto, Japan"]
        assert [row.reason.endswith("stands for no name") for row in report.bad] == [True]


@pytest.mark.parametrize("word", ["None", "none", "NaN", "NA", "nil", "\uff2e\uff4f\uff4e\uff45"])
def test_a_word_for_nothing_that_is_a_place_too_is_a_name_where_its_row_says_which(word: str) -> None:
    _, report = read(f"id,name,note\n1,Kyoto,x\n2,{word},x\n")
    assert [(row.line, "needs its country, region or coordinates" in row.reason) for row in report.bad] == [(3, True)]
    assert labels(f"{word}\nKyoto\n", "a.txt") == ["Kyoto"]
    for header, rest in (
        ("country", "Italy"), ("region", "Piedmont"), ("lat,lon", "45.9,7.8"), ("wikidata", "Q1"), ("geonameid", "7"),
    ):  # fmt: skip
        assert read(f"name,{header}\n{word},{rest}\n")[0][0].name == word
    assert labels(f"{word}, Italy\n", "a.txt") == [f"{word}, Italy"]


@pytest.mark.parametrize(
    "name",
    ["Å", "Y", "Ü", "O", "Nana", "Nanning", "Nuland", "Tbdistan", "1770", "!Kung", "S.", "北", "\u0627", "Unknown Bay"],
)
def test_a_short_name_is_a_name(name: str) -> None:
    assert [one.name for one in read(f"name\n{name}\nKyoto\n")[0]] == [name, "Kyoto"]


def test_what_stands_for_no_country_or_region_is_none() -> None:
    found, _ = read("name,country,region\nRome,N/A,-\nOslo,unknown,None\nSwakopmund,NA,NA\nRome,,\n")
    assert [(one.name, one.country, one.region) for one in found] == [
        ("Rome", None, None), ("Oslo", None, None), ("Swakopmund", "NA", "NA"),
    ]  # fmt: skip


def test_an_address_is_no_name() -> None:
    message = refusal("city,country\nhttp://www.wikidata.org/entity/Q1,France\nhttps://x.org/2,Spain\n")
    assert "all 2 rows are bad; line 2: name: an address (http://www.wikidata.org/entity/Q1), not a name" in message
    assert "--map name=COLUMN" in message


# --- the four formats ---

GEONAMES = (
    '1857910\tKyoto\tKyoto\tKioto,"Kyoto",京都\t35.02107\t135.75385\tP\tPPLA\tJP\t\t22\t26100\t\t\t1463723\t\t55\tAsia/Tokyo\t2022-11-03\n'
    '2988507\tParis "la\tParis\t' + "x" * 9_000 +
    "\t48.85341\t2.3488\tP\tPPLC\tFR\t\t11\t75\t751\t75056\t2138551\t\t42\tEurope/Paris\t2022-11-03\n"
)  # fmt: skip


@pytest.mark.parametrize("name", ["cities15000.txt", "JP.tsv", "standard input", "a.csv"])
def test_a_geonames_dump_is_read(name: str) -> None:
    (kyoto, paris), report = read(GEONAMES, name)
    assert (kyoto.name, kyoto.country, kyoto.lat, kyoto.lon) == ("Kyoto", "JP", 35.02107, 135.75385)
    assert kyoto.extra["geonameid"] == "1857910"
    assert kyoto.extra["population"] == "1463723"
    assert paris.name == 'Paris "la'
    assert kyoto.id == read("geonameid,name\n1857910,京都\n")[0][0].id
    assert report.read_as.startswith("a GeoNames dump, UTF-8, no header; sent: name, lat, lon, country; kept: ")


WIKIDATA = [
    {
        "city": "http://www.wikidata.org/entity/Q34600", "cityLabel": "Kyoto", "countryLabel": "Japan",
        "country": "http://www.wikidata.org/entity/Q17", "coord": "Point(135.768055555 35.011666666)",
    },
    {
        "city": "http://www.wikidata.org/entity/Q90", "cityLabel": "Paris", "countryLabel": "France",
        "country": "http://www.wikidata.org/entity/Q142", "coord": "Point(2.3522 48.8566)",
    },
]  # fmt: skip


def _wikidata_csv() -> str:
    return "\n".join([",".join(WIKIDATA[0]), *(",".join(row.values()) for row in WIKIDATA)])


def _sparql_json() -> str:
    bindings = [
        {
            name: {"type": "uri" if value.startswith("http") else "literal", "value": value, "xml:lang": "en"}
            for name, value in row.items()
        }
        for row in WIKIDATA
    ]
    return json.dumps({"head": {"vars": list(WIKIDATA[0])}, "results": {"bindings": bindings}})


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (_wikidata_csv(), "query.csv"),
        (_wikidata_csv().replace(",", "\t"), "query.tsv"),
        (json.dumps(WIKIDATA), "query.json"),
        (json.dumps(WIKIDATA, indent=2), "standard input"),
        (_sparql_json(), "sparql.json"),
        (json.dumps(json.loads(_sparql_json()), indent=1), "standard input"),
    ],
)
def test_what_wikidata_gives_is_read(data: str, name: str) -> None:
    (kyoto, paris), report = read(data, name)
    assert [kyoto.label, paris.label] == BOTH
    assert (kyoto.lat, kyoto.lon) == (35.011666666, 135.768055555)
    assert kyoto.extra["city"] == "http://www.wikidata.org/entity/Q34600"
    # Its item is its id.
    assert paris.id == read("qid,name\nQ90,Paname\n")[0][0].id
    assert report.unsent_columns == ["country"]
    assert "id: city" in report.read_as


def test_an_item_without_a_label_is_no_name() -> None:
    rows = "place,placeLabel\nhttp://www.wikidata.org/entity/Q7,Q7\nhttp://www.wikidata.org/entity/Q90,Paris\n"
    found, report = read(rows)
    assert [one.name for one in found] == ["Paris"]
    assert report.bad[0].reason == "name: Q7 has no label in this language"


def _features(indent: int | None = None) -> str:
    features = [
        {
            "type": "Feature", "id": f"node/{number}",
            "properties": {"name": name, "country": country, "tags": {"a": 1}},
            "geometry": {"type": "Point", "coordinates": place},
        }
        for number, (name, country, place) in enumerate(
            [("Kyoto", "Japan", [135.77, 35.01]), ("Paris", "France", [2.35, 48.86, 35.0])], start=1
        )
    ]  # fmt: skip
    features.append({
        "type": "Feature", "properties": {"name": "Andes"},
        "geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, 4], [1, 2]]]},
    })  # fmt: skip
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
    return json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}, indent=indent)


@pytest.mark.parametrize("name", ["a.geojson", "a.json", "standard input"])
@pytest.mark.parametrize("indent", [None, 2])
def test_geojson_is_read(name: str, indent: int | None) -> None:
    (kyoto, paris, andes), _ = read(_features(indent), name)
    assert [kyoto.label, paris.label, andes.label] == [*BOTH, "Andes"]
    assert (paris.lat, paris.lon, andes.lat) == (48.86, 2.35, None)
    assert kyoto.extra == {"id": "node/1", "tags": '{"a": 1}'}


def test_a_list_in_an_object_is_found_and_a_row_with_a_list_is_a_row() -> None:
    for key in ("destinations", "data", "results", "cities"):
        assert labels(json.dumps({"n": [1], key: ["Kyoto, Japan", "Paris, France"]}), "a.json") == BOTH
    (rome,), _ = read('{"name": "Rome", "items": ["a"]}\n', "standard input")
    assert rome.extra == {"items": '["a"]'}


def test_features_one_a_line_are_read() -> None:
    lines = "\n".join(json.dumps(one) for one in json.loads(_features())["features"])
    assert labels(lines, "a.geojsonl") == [*BOTH, "Andes"]


# --- what stands around the rows ---


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("sep=;\nname;country\nKyoto;Japan\nParis;France\n", "a.csv"),
        ('"sep=|"\r\nname|country\r\nKyoto|Japan\r\nParis|France\r\n', "standard input"),
        ("# from our wiki\nname,country\n# Asia\nKyoto,Japan\n# Europe, old\nParis,France\n", "a.csv"),
        ("#name,country\nKyoto,Japan\nParis,France\n", "a.csv"),
        ("- Kyoto, Japan\n- Paris, France\n", "a.txt"),
        ("* Kyoto, Japan\n\u2022 Paris, France\n", "standard input"),
        ("1. Kyoto, Japan\n2) Paris, France\n", "standard input"),
        ("# Cities\n  1. Kyoto, Japan\n 10. Paris, France\n", "a.txt"),
    ],
)
def test_what_is_no_row_is_passed_over(data: str, name: str) -> None:
    assert labels(data, name) == BOTH


def test_a_heading_above_a_table_is_no_destination() -> None:
    found, report = read("My places\nas of May\n\nname,country\nKyoto,Japan\nParis,France\n")
    assert [one.label for one in found] == BOTH
    assert [(row.line, row.reason) for row in report.bad] == [
        (1, "one cell above a table of several columns"), (2, "one cell above a table of several columns"),
    ]  # fmt: skip
    assert labels(workbook(["Places"], [], ["City", "Country"], ["Kyoto", "Japan"], ["Paris", "France"])) == BOTH
    assert labels("Kyoto\nParis\n") == ["Kyoto", "Paris"]
    many = [f"City {number}" for number in range(20)]
    assert labels("\n".join(many)) == many


def test_columns_in_a_plain_text_are_not_taken_for_names() -> None:
    for delimiter in ";\t|":
        message = refusal(f"Kyoto{delimiter}Japan\nParis{delimiter}France\n", "a.txt")
        assert "which column holds the names?" in message
    assert labels("Tokyo; the city\nParis, France\n", "a.txt") == ["Tokyo; the city", "Paris, France"]


def test_a_line_keeps_its_number_behind_a_comment_and_a_quoted_one_is_a_row() -> None:
    found, report = read('# x\nname,note\n# y\n,"no name"\n"# 1 Beach",z\n#2 Beach,z\n')
    assert [(row.line, row.reason) for row in report.bad] == [(4, "no name")]
    assert [one.name for one in found] == ["# 1 Beach", "#2 Beach"]


# --- encodings and packing ---

UMLAUTS = "name,country\nMünchen,Deutschland\nOrléans,France\n"


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", "UTF-8"), ("utf-8-sig", "UTF-8"), ("utf-16", "UTF-16"), ("utf-32", "UTF-32"),
        ("cp1252", "Windows-1252"), ("latin-1", "Windows-1252"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_encodings_and_gzip_are_read_and_said(encoding: str, said: str, *, packed: bool) -> None:
    names = ["München, Deutschland", "Orléans, France"]
    array = json.dumps(names, ensure_ascii=False)
    for data, name in ((UMLAUTS, "a.csv"), ("\n".join(names), "a.txt"), (array, "a.json")):
        raw = data.encode(encoding)
        found, report = read(gzip.compress(raw, mtime=0) if packed else raw, f"{name}.gz" if packed else name)
        assert [one.label for one in found] == ["München, Deutschland", "Orléans, France"]
        assert said in report.read_as
        assert ("gzip" in report.read_as) == packed


def test_big_endian_marks_are_understood() -> None:
    for codec, mark in (("utf-16-be", b"\xfe\xff"), ("utf-32-be", b"\x00\x00\xfe\xff")):
        assert labels(mark + UMLAUTS.encode(codec))[0] == "München, Deutschland"


@pytest.mark.parametrize("before", [0, 2_500])
@pytest.mark.parametrize(("name", "row"), [("a.csv", "{}\n"), ("a.txt", "{}\n"), ("a.json", '"{}",\n')])
def test_windows_1252_is_understood_wherever_it_begins(name: str, row: str, before: int) -> None:
    rows = "".join(row.format(f"City {number} {'x' * 140}") for number in range(before))
    end = '"x"]' if name == "a.json" else "x"
    data = f"{'[' if name == 'a.json' else 'name' + chr(10)}{rows}{row.format('Orléans')}{row.format('Málaga')}{end}"
    found = labels(data.encode("cp1252"), name)
    assert found[-3:] == ["Orléans", "Málaga", "x"]


@pytest.mark.parametrize("before", [0, 2_500])
@pytest.mark.parametrize(("name", "row"), [("a.csv", "{}\n"), ("a.txt", "{}\n"), ("a.json", '"{}",\n')])
def test_a_bad_byte_in_utf_8_costs_its_row(name: str, row: str, before: int) -> None:
    rows = "".join(row.format(f"City {number} {'x' * 140}") for number in range(before))
    parts = ["[" if name == "a.json" else "name\n", rows, row.format("Málaga"), row.format("BAD"), row.format("Cádiz")]
    end = '"x"]' if name == "a.json" else "x"
    data = ("".join(parts) + end).encode().replace(b"BAD", b"Pal\xe9rmo")
    found, report = read(data, name)
    assert [one.name for one in found][-3:] == ["Málaga", "Cádiz", "x"]
    assert (report.rejected, report.bad[0].reason.endswith("not UTF-8 (byte 0xE9)")) == (1, True)


def test_a_character_that_was_lost_before_costs_its_row() -> None:
    _, report = read("name\nPal\ufffdrmo\nRome\n")
    assert report.bad[0].reason == "name: has a character that could not be read (U+FFFD)"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (gzip.compress(UMLAUTS.encode(), mtime=0)[:-9], "cannot be read"),
        (gzip.compress(UMLAUTS.encode() * 9_000, mtime=0)[:200] + b"x" * 200, "cannot be read"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\x00" * 600, "an old Excel workbook (.xls): save it as CSV UTF-8"),
        (b"<!DOCTYPE html><html><table><tr><td>Rome</td></tr></table>", "HTML or XML: save its table as CSV UTF-8"),
        (b"PAR1" + b"\x00" * 100, "a Parquet file: convert it to CSV UTF-8"),
        ("name\nKyoto\n".encode("utf-16-le"), "if it is UTF-16, save it as UTF-8"),
        (b"PK\x03\x04" + b"x" * 100, "a damaged zip archive"),
    ],
)
def test_what_cannot_be_read_is_one_clear_line(data: bytes, said: str) -> None:
    assert said in refusal(data, "a.csv")


def test_gzip_that_unpacks_to_much_is_read_as_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "large.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"name\n")
        for _ in range(125):
            file.write(b"Kyoto\n" * 200_000)
    code = (
        "import re, sys; from tasks.inputs.reader import Reader\n"
        "with Reader(sys.argv[1], limit=1) as reader: print(*(one.name for one in reader))\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True, text=True)
    name, peak_kib = run.stdout.split()
    # 150 MB when unpacked.
    assert (name, int(peak_kib) < 100_000) == ("Kyoto", True)


# --- workbooks ---


def workbook(*rows: list[Any], sheets: int = 1) -> bytes:
    book = openpyxl.Workbook()
    for number in range(1, sheets):
        book.create_sheet(f"Empty {number}", 0)
    for row in rows:
        book.worksheets[-1].append(row)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def test_a_workbook_is_read() -> None:
    data = workbook(["ID", "City Name", "Country", "lat", "lon", "note"], [7, "Kyoto", "Japan", 35.01, 135.77, True],
                    [None], [8.0, "Paris", "France", 48.9, 2.35, None], [9, None, "Spain"], sheets=2)  # fmt: skip
    for name in ("a.xlsx", "standard input"):
        (kyoto, paris), report = read(data, name)
        assert [kyoto.label, paris.label] == BOTH
        assert (kyoto.lat, kyoto.extra, paris.extra) == (35.01, {"ID": "7", "note": "True"}, {"ID": "8"})
        assert [(row.line, row.reason) for row in report.bad] == [(5, "no name")]
        assert report.read_as.startswith(
            "an Excel workbook, header on line 1; sent: name=City Name, Country, lat, lon; kept: note"
        )
    assert "which column holds the names?" in refusal(workbook(["Kyoto", "Japan"]), "a.xlsx")
    assert labels(workbook(["Kyoto"], ["Paris"]), "a.xlsx") == ["Kyoto", "Paris"]


def test_a_workbook_that_is_damaged_or_none_is_one_clear_line() -> None:
    data = workbook(["name"], ["Kyoto"])
    assert "a damaged zip archive" in refusal(data[:-200], "a.xlsx")
    for part in ("xl/workbook.xml", "xl/worksheets/sheet1.xml"):
        broken = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as whole, zipfile.ZipFile(broken, "w") as archive:
            for info in whole.infolist():
                archive.writestr(info.filename, "<a><b" if info.filename == part else whole.read(info))
        assert "an Excel workbook that cannot be read" in refusal(broken.getvalue(), "a.xlsx")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("cities.csv", "name\nKyoto\n")
    assert "a zip archive: unpack it, and name the file in it" in refusal(file.getvalue(), "a.zip")


def test_a_workbook_without_openpyxl_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.xlsx"
    path.write_bytes(workbook(["name"], ["Kyoto"]))
    code = (
        "import sys; sys.modules['openpyxl'] = None\n"
        "from tasks.inputs.reader import Reader\n"
        "with Reader(sys.argv[1]) as reader: list(reader)"
    )
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False, text=True)
    said = "an Excel workbook: save it as CSV UTF-8, or install the extra: scripts/setup --extra xlsx"
    assert run.stderr.splitlines()[-1].endswith(said)


# --- coordinates ---


@pytest.mark.parametrize(
    ("lat", "lon"),
    [
        ("35,02", "135,77"), ("35.02", "135.77"), ("+35.02", "135.77°"), ("35.02 N", "135.77 E"),
        ("35,02° N", "135,77°E"),
    ],
)  # fmt: skip
def test_coordinates_are_read_as_people_write_them(lat: str, lon: str) -> None:
    (one,), report = read(f"name;lat;lon\nKyoto;{lat};{lon}\n")
    assert (one.lat, one.lon, report.notes) == (35.02, 135.77, [])


def test_south_and_west_are_negative() -> None:
    (one,), _ = read("name;lat;lon\nLima;12,05 S;77.04W\n")
    assert (one.lat, one.lon) == (-12.05, -77.04)


@pytest.mark.parametrize("lat", ["35:02", "35°01'", "1.234,5", "north", "3502", "35,02,1"])
def test_a_coordinate_that_is_not_certain_is_left_out_and_said(lat: str) -> None:
    (one,), report = read(f"name;lat;lon\nKyoto;{lat};135.77\n")
    assert (one.name, one.lat, one.lon) == ("Kyoto", None, None)
    assert report.notes[0].line == 2
    assert report.notes[0].reason.startswith("lat: expected -90 to 90 degrees")


# --- how it was read ---


@pytest.mark.parametrize(
    ("data", "name", "columns", "said"),
    [
        ("Stadt;Land;Typ;id\nRom;Italien;Stadt;1\n", "a.csv", ["typ"],
         "CSV, delimiter ';', UTF-8, header on line 1; sent: name=Stadt, country=Land, Typ; id: id"),
        ("# x\n\nname,type\nRome,city\n", "a.csv", [],
         "CSV, delimiter ',', UTF-8, header on line 3; sent: name; kept: type"),
        ("Rome, Italy\n", "a.txt", [], "text: a destination a line, its country behind a comma, UTF-8"),
        ('{"city": "Rome", "note": "x"}\n', "a.jsonl", [], "JSON lines, UTF-8; sent: name=city; kept: note"),
        ('["Rome"]', "a.json", [], "JSON, UTF-8"),
    ],
)  # fmt: skip
def test_how_a_file_is_read_is_one_line(data: str, name: str, columns: list[str], said: str) -> None:
    _, report = read(data, name, columns=columns)
    assert report.read_as == said


def test_how_a_file_is_read_is_told_with_the_first_destinations_before_the_rest() -> None:
    told: list[list[str]] = []
    there, here = os.pipe()
    with (
        os.fdopen(there, "rb") as pipe,
        Reader(pipe, on_start=lambda report: told.append(list(report.first))) as reader,
    ):
        os.write(here, b"name\nKyoto\nParis\nRome\n")
        rows = iter(reader)
        assert [next(rows).name for _ in range(3)] == ["Kyoto", "Paris", "Rome"]
        assert told == [["Kyoto", "Paris", "Rome"]]
        os.write(here, b"Oslo\n")
        os.close(here)
        assert [one.name for one in rows] == ["Oslo"]
    assert len(told) == 1
    read("Kyoto\n", "a.txt", on_start=lambda report: told.append(list(report.first)))
    assert told[1:] == [["Kyoto"]]


def test_every_extra_can_be_installed_from_the_lock_and_an_unknown_one_is_named() -> None:
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lock = "".join((root / name).read_text() for name in ("requirements.lock", "requirements-dev.lock"))
    pinned = {line.partition("==")[0] for line in lock.splitlines() if "==" in line}
    for name, wanted in extras.items():
        for one in wanted:
            package = re.split(r"[<>=\[;]", one)[0].lower()
            assert package in pinned, f"{name} needs {package}"
    said = subprocess.run(
        [sys.executable, root / "scripts" / "extra", "nix"], capture_output=True, check=False, text=True
    )
    assert (said.returncode, "no extra 'nix'; there are: build, postgresql" in said.stderr) == (2, True)
