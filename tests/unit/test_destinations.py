import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import config
from tasks.errors import InputError
from tasks.identity import normalise
from tasks.inputs import duplicates
from tasks.inputs.columns import MAX_EXTRA, MAX_NAME, identified
from tasks.inputs.duplicates import SeenRows
from tasks.inputs.placeholders import is_doubtful, is_placeholder
from tasks.inputs.reader import KEPT_ROWS, BadRow, Reader, ReadReport, from_iterable
from tasks.inputs.source import MAX_ROW
from tasks.inputs.titles import role_of
from tasks.messages import Destination

Read = tuple[list[Destination], ReadReport]


def read(data: bytes | str, name: str = "cities", **options: Any) -> Read:
    file = io.BytesIO(data if isinstance(data, bytes) else data.encode())
    file.name = name  # type: ignore[attr-defined]
    with Reader(file, **options) as reader:
        return list(reader), reader.report


def labels(data: bytes | str, name: str = "cities") -> list[str]:
    return [destination.label for destination in read(data, name)[0]]


def refusal(data: bytes | str, name: str = "cities", **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(data, name, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def bad(data: bytes | str, name: str = "cities") -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in read(data, name)[1].bad]


# --- formats ---


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("name,country\nKyoto,Japan\nParis,France\n", "a.csv"),
        ("Country;CITY\nJapan;Kyoto\nFrance;Paris\n", "a.csv"),
        ("destination\tcountry_name\nKyoto\tJapan\nParis\tFrance\n", "a.tsv"),
        ("place|country\nKyoto|Japan\nParis|France\n", "<stdin>"),
        ('name,country\n"Kyoto",Japan\n"Paris",France\n', "<stdin>"),
        ("Ort;Land\nKyoto;Japan\nParis;France\n", "<stdin>"),
        ("name,country\r\nKyoto,Japan\r\n\r\nParis,France", "<stdin>"),
        ("name,country\rKyoto,Japan\rParis,France\r", "old-mac.csv"),
        ("Kyoto, Japan\n\n# a remark\n  Paris ,  France\n", "a.txt"),
        ("Kyoto, Japan\nParis, France", "<stdin>"),
        ("name;country\nKyoto;Japan\nParis;France", "a.txt"),
        ('{"name": "Kyoto", "country": "Japan"}\n\n{"city": "Paris", "Country": "France"}\n', "a.jsonl"),
        ('{"name": "Kyoto", "country": "Japan"}\n"Paris, France"\n', "<stdin>"),
        ('{"name": "Kyoto", "country": "Japan"}\n{"name": "Paris", "country": "France"}\n', "a.json"),
        ('["Kyoto, Japan", {"title": "Paris", "country": "France"}]', "a.json"),
        ('\n [\n"Kyoto, Japan"\n,\n"Paris, France"\n]\n', "<stdin>"),
        ('{"destinations": ["Kyoto, Japan", "Paris, France"]}', "a.json"),
        ('{"version": [1, {"a": "]"}], "destinations": [\n"Kyoto, Japan", "Paris, France"], "n": 2}', "<stdin>"),
    ],
)
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_every_format_gives_the_same_destinations(data: str, name: str, bom: bytes) -> None:
    assert labels(bom + data.encode(), name) == ["Kyoto, Japan", "Paris, France"]


def test_the_last_part_of_a_line_is_the_country_and_the_name_stays_as_written() -> None:
    (causeway, maldives, comma), _ = read("Giant's Causeway, Northern Ireland, UK\nMaldives\nXi'an,\n", "a.txt")
    assert (causeway.name, causeway.country) == ("Giant's Causeway, Northern Ireland", "UK")
    assert (maldives.name, maldives.country) == ("Maldives", None)
    assert (comma.name, comma.country) == ("Xi'an", None)


def test_a_comma_in_a_name_does_not_decide_the_delimiter() -> None:
    rows = "Giant's Causeway, Northern Ireland;UK\nKyoto;Japan\n"
    columns = ["name=1", "country=2"]
    for data in (rows, rows.replace(rows[:34], f'"{rows[:34]}"')):
        assert read(data, "a.csv", mapped=columns)[0][0].label == "Giant's Causeway, Northern Ireland, UK"
        assert read(f"name;country\n{data}", "a.csv")[0][0].label == "Giant's Causeway, Northern Ireland, UK"


def test_unknown_columns_are_kept_with_their_titles_as_written() -> None:
    (kyoto,), _ = read("id,title,Name,Best For,,lat,LNG\n7,Old capital,Kyoto,temples,x,35.01,135.77\n", "a.csv")
    assert kyoto.name == "Kyoto"
    assert kyoto.extra == {"id": "7", "title": "Old capital", "Best For": "temples", "column_5": "x"}
    assert (kyoto.lat, kyoto.lon) == (35.01, 135.77)


def test_columns_of_a_file_without_titles_are_said_by_their_numbers() -> None:
    columns = ["name=1", "country=2", "region=3"]
    (kyoto, maldives), _ = read("Kyoto,Japan,Kansai,temples\nMaldives\n", "a.csv", mapped=columns)
    assert (kyoto.name, kyoto.country, kyoto.region, kyoto.extra) == ("Kyoto", "Japan", "Kansai", {"4": "temples"})
    assert (maldives.name, maldives.country) == ("Maldives", None)


def test_json_values_that_are_no_text_are_kept_as_json() -> None:
    (kyoto,), _ = read('[{"name": "Kyoto", "tags": ["a", 1], "ok": true, "none": null}]', "a.json")
    assert kyoto.extra == {"tags": '["a", 1]', "ok": "true"}


# --- bad rows ---


def test_a_bad_row_is_reported_with_the_line_on_which_it_starts() -> None:
    data = 'name,note\nKyoto,"two\nlines"\n,nothing\n"Pa\nris",x\nRome,y,z\nOslo,end\n'
    destinations, report = read(data, "a.csv")
    assert [d.name for d in destinations] == ["Kyoto", "Oslo"]
    assert [row.line for row in report.bad] == [4, 5, 7]
    assert report.bad[0].reason == "no name"
    assert "is a quote not closed?" in report.bad[1].reason
    assert "3 columns where 2" in report.bad[2].reason
    assert (report.rows, report.accepted, report.duplicates, report.rejected) == (5, 2, 0, 3)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"name": ""}', "no name"),
        ('{"country": "Japan"}', "no name"),
        ('{"name": 7}', "name: expected text, got int"),
        ('{"name": true}', "name: expected text, got bool"),
        ('{"name": ["Kyoto"]}', "name: expected text, got list"),
        ('{"name": "a\\u0007b"}', "name: has control characters"),
        ('{"name": "a\\ud800b"}', "lone surrogate"),
        ('{"name": "\\u200b\\u200d"}', "only invisible characters"),
        ('{"name": "Kyoto", "country": 81}', "country: expected text"),
        (f'{{"name": "Kyoto", "lat": 1{"0" * 5000}}}', "not valid JSON"),
        ('{"name": "Kyoto", "x": NaN}', "NaN is not JSON"),
        ('{"name": "Kyoto", "x": -Infinity}', "-Infinity is not JSON"),
        ('{"name": "Kyoto", "name": "Paris"}', "a key stands twice"),
        ('{"name": "Kyoto", "x": "\\udfff"}', "lone surrogate"),
        ('{"name": "Kyoto"', "not valid JSON"),
        ('{"name": "Kyoto"} x', "not valid JSON"),
        ("17", "got int"),
        ("null", "got NoneType"),
        ('["Kyoto"]', "got list"),
        ("[" * 100_000, "not valid JSON"),
        (json.dumps({"name": "x" * (MAX_NAME + 1)}), "201 characters, at most 200"),
        (json.dumps({"name": "Kyoto", "x": "y" * (MAX_EXTRA + 1)}), "2001 characters, at most 2000"),
        (json.dumps({"name": "Kyoto"} | {f"c{i}": "x" for i in range(51)}), "51 extra columns, at most 50"),
        (json.dumps({"name": "Kyoto", "x": "y" * 1024 * 1024}), "a line of more than 1048576 bytes"),
    ],
)
def test_a_bad_row_says_what_is_wrong_and_the_next_one_is_read(row: str, reason: str) -> None:
    destinations, report = read(f'{{"name": "Oslo"}}\n{row}\n{{"name": "Rome"}}\n', "a.jsonl")
    assert [d.name for d in destinations] == ["Oslo", "Rome"]
    assert [bad_row.line for bad_row in report.bad] == [2]
    assert reason in report.bad[0].reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"name": "Kyoto", "lat": 91}', "lat: expected -90 to 90 degrees, got '91'"),
        ('{"name": "Kyoto", "lon": "-180.1"}', "lon: expected -180 to 180"),
        ('{"name": "Kyoto", "lat": "north"}', "lat: expected -90 to 90 degrees, got 'north'"),
        ('{"name": "Kyoto", "lat": true}', "lat: expected -90"),
        ('{"name": "Kyoto", "lat": 1e999}', "lat: expected -90"),
        ('{"name": "Kyoto", "lat": "nan"}', "lat: expected -90"),
        (f'{{"name": "Kyoto", "lat": 1{"0" * 400}}}', "lat: expected -90 to 90 degrees, got a very large number"),
    ],
)
def test_coordinates_that_cannot_be_read_are_left_out_and_said(row: str, reason: str) -> None:
    (kyoto,), report = read(f"{row}\n", "a.jsonl")
    assert (kyoto.lat, kyoto.lon, report.rejected) == (None, None, 0)
    assert [note.line for note in report.notes] == [1]
    assert reason in report.notes[0].reason
    assert report.notes[0].reason.endswith("its coordinates are left out")
    assert "--strict stops here" in refusal(f"{row}\n", "a.jsonl", strict=True)


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ('{"name": NaN}', "NaN is not JSON"),
        ('{"name": "Kyoto", "name": "Paris"}', "a key stands twice"),
        ("{name: Kyoto}", "not valid JSON"),
        ('{"name": "x, ]} \\" \\\\", "y": [}', "not valid JSON"),
        ("17", "got int"),
        (json.dumps({"name": "Kyoto", "x": "y" * 1_100_000}), "more than 1048576 characters"),
        (json.dumps({"name": "Kyoto", "x": ["\\", '"', "{"] * 70_000}), "more than 1048576 characters"),
        ("[" * 5_000 + "]" * 5_000, "not valid JSON"),
    ],
)
@pytest.mark.parametrize("before", [0, 65_500])
def test_a_bad_element_of_an_array_is_passed_over(element: str, reason: str, before: int) -> None:
    destinations, report = read(f'["Oslo",\n{" " * before}{element},\n"Rome"\n]', "a.json")
    names = [d.name for d in destinations]
    if "[}" not in element:  # unbalanced brackets may take what follows with them
        assert names == ["Oslo", "Rome"]
        assert len(report.bad) == 1
    assert names[0] == "Oslo"
    assert report.bad[0].line == 2
    assert reason in report.bad[0].reason


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        ('["Kyoto",\n"Par', 2, "not valid JSON"),
        ('["Kyoto",\n', 2, "the list is not closed"),
        ('["Kyoto"]\n["Paris"]', 2, "the list ends before this"),
        ('["Kyoto"\n"Paris"]', 2, "expected a comma"),
    ],
)
def test_a_damaged_array_keeps_what_was_read(data: str, line: int, reason: str) -> None:
    destinations, report = read(data, "a.json")
    assert destinations[0].name == "Kyoto"
    assert report.bad[0].line == line
    assert reason in report.bad[0].reason


def test_strict_stops_at_the_first_bad_row_with_file_and_line() -> None:
    message = refusal("name,country\nKyoto,Japan\n,France\n", "cities.csv", strict=True)
    assert message == "cities.csv: line 3: no name (--strict stops here)"


def test_every_bad_row_is_told_but_only_the_first_are_kept() -> None:
    told: list[BadRow] = []
    _, report = read("name,country\nKyoto,Japan\n" + ",x\n" * 1_250, "a.csv", on_bad_row=told.append)
    assert (len(told), len(report.bad), report.rejected) == (1_250, KEPT_ROWS, 1_250)


def test_a_line_without_end_is_bounded_and_the_lines_after_it_keep_their_numbers() -> None:
    assert bad("Kyoto\n" + "é" * 3_000_000 + "\n" + "x" * 300 + "\nOslo\n", "a.txt") == [
        (2, "a line of more than 1048576 bytes"),
        (3, "name: 300 characters, at most 200 are allowed"),
    ]


def test_a_quote_that_is_never_closed_costs_its_row() -> None:
    rows = "".join(f'City {i},"a{"x" * 90}""b\n' if i == 5 else f"City {i},note {'x' * 90}\n" for i in range(12_000))
    destinations, report = read("name,note\n" + rows, "a.csv")
    assert len(destinations) == 11_999
    assert [(row.line, row.reason) for row in report.bad] == [(7, "a quote is not closed")]


# --- inputs that cannot be read ---


def test_characters_cut_by_the_end_of_a_block_are_put_together() -> None:
    for name, template in (("a.json", '["{}", "Kyoto"]'), ("a.txt", "# {}\nKyoto\n"), ("a.csv", '"{}"\nKyoto')):
        for shift in range(4):
            data = template.format("x" * shift + "日" * 100_000)
            assert read(data, name)[0][-1].name == "Kyoto"


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.txt", "a.jsonl", "a"])
def test_binary_data_is_refused(name: str) -> None:
    for data in ("name\nKyoto\n".encode("utf-16-le"), b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00>" * 99):
        assert "binary data" in refusal(data, name)


_ODD: Any = {
    "a NUL byte": (b"\x00", {"a.csv": "NUL byte", "a.json": "Invalid control character"}),
    "an undecodable byte": (b"\xff", {"a.csv": "not UTF-8 (byte 0xFF)", "a.json": "not UTF-8 (byte 0xFF)"}),
    "another control character": (b"\x07", {"a.csv": "control characters", "a.json": "Invalid control character"}),
}


@pytest.mark.parametrize("odd", list(_ODD))
@pytest.mark.parametrize("before", [0, 600])
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.csv", ("name,country\n", "{},Peru\n", "")),
        ("a.csv", ("name,country\n", '"{}","Peru"\n', "")),
        ("a.tsv", ("name\tcountry\n", "{}\tPeru\n", "")),
        ("a.txt", ("", "{}, Peru\n", "")),
        ("a.jsonl", ("", '{{"name": "{}", "country": "Peru"}}\n', "")),
        ("a.json", ("[\n", '{{"name": "{}", "country": "Peru"}},\n', '"Ica, Peru"]')),
    ],
)
def test_an_odd_byte_costs_its_row(name: str, parts: tuple[str, str, str], before: int, odd: str) -> None:
    begin, row, end = parts
    byte, reasons = _ODD[odd]
    # More than is looked at to tell the format, in all of them.
    rows = [row.format(f"City {number} {'x' * 130}") for number in range(before)] + [
        row.format(each) for each in ("Málaga", "Li@ma", "Cusco")
    ]
    found, report = read((begin + "".join(rows) + end).encode().replace(b"@", byte), name)
    assert [one.name for one in found[before:]] == ["Málaga", "Cusco", *(["Ica"] if end else [])]
    assert [bad.line for bad in report.bad] == [begin.count("\n") + before + 2]
    assert reasons["a.json" if name.startswith("a.json") and byte < b"\x20" else "a.csv"] in report.bad[0].reason


def test_an_odd_byte_in_any_column_costs_its_row_and_one_in_a_title_costs_nothing() -> None:
    for byte, said in ((b"\x00", "column 'note': has a NUL byte"), (b"\xff", "column 'note': not UTF-8 (byte 0xFF)")):
        data = 'name,note\nLima,é\nIca,"one\ntwo@"\nCusco,b\n'.encode().replace(b"@", byte)
        found, report = read(data, "a.csv")
        assert [one.name for one in found] == ["Lima", "Cusco"]
        assert [(bad.line, said in bad.reason) for bad in report.bad] == [(3, True)]
        found, report = read(b"name,n" + byte + b"ote,\xc3\xa9\nLima,a,b\n", "a.csv")
        assert ([one.name for one in found], report.rejected) == (["Lima"], 0)
        assert all(key.isprintable() for key in found[0].extra)


@pytest.mark.parametrize(
    ("rows", "bad_lines", "kept"),
    [
        # The quote is never closed, closed by the next row's quote, and closed by that of its own row's next cell.
        ('Lima,Peru,"a\nIca,Peru,b\nCusco,Peru,c\n', [2], ["Ica", "Cusco"]),
        ('Lima,Peru,"a\nIca,Peru,"b"\nCusco,Peru,c\n', [2], ["Ica", "Cusco"]),
        ('Lima,"Peru,a\nIca,"Peru","b"\nCusco,"Peru",c\n', [2], ["Ica", "Cusco"]),
        ('"Lima,Peru,a\nIca,Peru,b\n"Cusco",Peru,c\n', [2], ["Ica", "Cusco"]),
        # The file ends in the quote.
        ('Lima,Peru,a\nIca,Peru,b\nCusco,Peru,"c', [4], ["Lima", "Ica"]),
        # A quote within a cell opens nothing, and a cell may have lines.
        ('Lima,Peru,5" a\nIca,Peru,"b\nb, ""b"", b\n\nb"\nCusco,Peru,c\n', [], ["Lima", "Ica", "Cusco"]),
    ],
)
def test_a_quote_that_is_not_closed_costs_its_row(rows: str, bad_lines: list[int], kept: list[str]) -> None:
    found, report = read(f"name,country,note\n{rows}", "a.csv")
    assert [one.name for one in found] == kept
    assert [row.line for row in report.bad] == bad_lines
    assert all("a quote is not closed" in row.reason for row in report.bad)


@pytest.mark.parametrize(
    "filler", ["x" * 1_100_000, "a line, of a text\n" * 60_000, "one, two, three, four\n\n" * 46_000]
)
@pytest.mark.parametrize(("name", "row"), [("a.csv", 'Ica,Peru,"{}"\n'), ("a.tsv", 'Ica\tPeru\t"{}"\n')])
def test_a_cell_larger_than_a_row_may_be_costs_its_row(name: str, row: str, filler: str) -> None:
    begin = "name,country,note\nLima,Peru,a\n" if name == "a.csv" else "name\tcountry\tnote\nLima\tPeru\ta\n"
    found, report = read(begin + row.format(filler) + row.format("b").replace("Ica", "Cusco"), name)
    assert [one.name for one in found] == ["Lima", "Cusco"]
    assert [bad.line for bad in report.bad] == [3]
    assert "more than 1048576" in report.bad[0].reason


def test_a_file_of_open_quotes_is_read_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.inputs.tables.REREAD", 6 * MAX_ROW)
    began = time.process_time()
    assert "a quote is not closed" in refusal("name,note\n" + 'a","\n' * 200_000, "a.csv")
    # A sixth of a second for each million characters that are read again; without a bound it would take hours.
    assert time.process_time() - began < 100


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.txt", "a.jsonl", "a", "a.tsv"])
@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(name: str, data: bytes) -> None:
    assert refusal(data, name).startswith(f"{name}: no destinations")


def test_a_file_of_bad_rows_only_is_an_error_with_the_first_reason() -> None:
    assert (
        refusal("name,country\n,Japan\n,France\n", "a.csv")
        == "a.csv: no destinations: all 2 rows are bad; line 2: no name"
    )


def test_a_missing_file_a_folder_and_an_unreadable_name_are_errors(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.csv", "No such file"), (tmp_path, "is a folder"), ("a\0b", "null byte")):
        with pytest.raises(InputError, match=reason), Reader(path) as reader:
            list(reader)


def test_a_file_opened_as_text_is_an_error() -> None:
    with pytest.raises(InputError, match="open it in binary mode"), Reader(io.StringIO("Kyoto")) as reader:  # type: ignore[arg-type]
        list(reader)


def test_standard_input_is_read_for_a_dash() -> None:
    code = "from tasks.inputs.reader import Reader\nwith Reader('-') as r: print([d.label for d in r], r.name)"
    run = subprocess.run([sys.executable, "-c", code], input=b"Kyoto, Japan\n", capture_output=True, check=True)
    assert run.stdout.decode() == "['Kyoto, Japan'] standard input\n"


@pytest.mark.parametrize("first", [b"Kyoto\n", b'{"name": "Kyoto"}\n', b'["Kyoto",\n', b"name\nKyoto\n"])
def test_the_first_row_of_a_slow_pipe_comes_before_its_last(first: bytes) -> None:
    there, here = os.pipe()
    with os.fdopen(there, "rb") as pipe, Reader(pipe) as reader:
        os.write(here, first)
        destinations = iter(reader)
        assert next(destinations).name == "Kyoto"
        os.close(here)
        assert list(destinations) == []


def test_a_reader_needs_its_with_statement() -> None:
    with pytest.raises(RuntimeError, match="with Reader"):
        list(Reader("a.csv"))


def test_reading_is_light_to_import() -> None:
    code = "import sys, tasks.inputs.reader; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert not {"celery", "kombu", "redis", "aiohttp", "sqlalchemy", "yaml"} & set(json.loads(loaded.replace("'", '"')))


# --- duplicates, limit, memory ---


def test_spellings_of_one_destination_count_as_duplicates() -> None:
    destinations, report = read(
        "Paris, France\n  PARIS,  FRANCE \n\uff30\uff41\uff52\uff49\uff53,France\nParis\n", "a.txt"
    )
    assert [d.label for d in destinations] == ["Paris, France", "Paris"]
    assert (report.accepted, report.duplicates, report.rejected) == (2, 2, 0)


def test_limit_takes_the_first_and_reads_no_further() -> None:
    destinations, report = read("Kyoto\nParis\nRome\n", "a.txt", limit=2)
    assert [d.name for d in destinations] == ["Kyoto", "Paris"]
    assert report.rows == 2


def test_rows_are_told_apart_before_and_after_they_move_to_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "KEYS_IN_MEMORY", 2_000)
    seen = SeenRows()
    rows = [identified(f"City {number}") for number in range(2_500)]
    assert not any(seen.duplicate(row, line) for line, row in enumerate(rows, start=1))
    found = [seen.duplicate(row, 10**6) for row in rows[:: len(rows) // 300]]
    assert [one and one.first_line for one in found] == list(range(1, len(rows) + 1, len(rows) // 300))
    assert seen._many is not None
    seen.close()


# Not ru_maxrss: a child begins with its parent's.
_PEAK = r"""
import re, sys
from tasks.inputs.reader import Reader
with Reader(sys.argv[1]) as reader:
    for _ in reader: pass
print(reader.report.accepted, re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_hundred_thousand_rows_need_hardly_more_memory_than_a_thousand(tmp_path: Path, ending: str) -> None:
    def peak_kib(rows: int) -> int:
        path = tmp_path / f"{rows}.{ending}"
        with path.open("w") as file:
            lines = (f"A place with a number {row}" for row in range(rows))
            file.write("name,country\n" if ending == "csv" else "")
            text = (f"{line},Country\n" for line in lines) if ending == "csv" else (f'"{line}",\n' for line in lines)
            file.write("[" if ending == "json" else "")
            file.writelines(text)
            file.write('"last"]' if ending == "json" else "last\n")
        run = subprocess.run([sys.executable, "-c", _PEAK, path], capture_output=True, check=True, text=True)
        accepted, peak = map(int, run.stdout.split())
        assert accepted == rows + 1
        return peak

    # What is known of 100,000 rows takes 20 MB in memory; ours moves to disk, with 8 MB of SQLite's pages.
    assert peak_kib(100_000) - peak_kib(1_000) < 15_000


# --- from Python ---


def test_python_values_of_three_kinds_become_destinations() -> None:
    made = Destination.of("Rome", "Italy")
    items = ["Kyoto, Japan", {"name": "Paris", "country": "France", "n": 1}, made, "KYOTO, japan"]
    assert [d.label for d in from_iterable(items)] == ["Kyoto, Japan", "Paris, France", "Rome, Italy"]


@pytest.mark.parametrize("item", [7, None, {"name": "Kyoto", "x": object()}, "", {"lat": 3}, ["Kyoto"]])
def test_another_python_value_is_refused_with_its_number(item: Any) -> None:
    with pytest.raises(InputError, match=r"^destination 2: "):
        list(from_iterable(["Kyoto", item]))


def test_the_demo_has_its_twenty_five_destinations() -> None:
    with Reader(Path(config.__path__[0]) / "destinations.csv", strict=True) as reader:
        found = {(d.name, d.country) for d in reader}
    assert len(found) == 25
    assert {("Maldives", None), ("Xi'an", "China"), ("Giant's Causeway, Northern Ireland", "United Kingdom")} <= found


# --- properties ---

_names = (
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="\ufffd#"), max_size=60)
    .map(str.strip)
    .filter(normalise)
)
#: What a list's lines begin with, numbers, addresses and titles are no names.
_names = _names.filter(
    lambda name: name[0].isalpha() and "://" not in name and name[:4].lower() != "www." and not role_of(name)
)
_names = _names.filter(lambda name: not is_placeholder(name) and not is_doubtful(name))
_places = st.lists(st.tuples(_names, st.none() | _names), min_size=1, max_size=20)
Places = list[tuple[str, str | None]]


def _as_csv(places: Places) -> Iterator[tuple[str, str]]:
    for delimiter in ",;\t|":
        file = io.StringIO(newline="")
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([("name", "country"), *((name, country or "") for name, country in places)])
        yield file.getvalue(), "a.csv"


def _as_json(places: Places) -> Iterator[tuple[str, str]]:
    rows = [{"name": name, "country": country} for name, country in places]
    for ascii_only in (True, False):
        yield "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows), "a.jsonl"
        yield json.dumps(rows, ensure_ascii=ascii_only), "a.json"
        yield json.dumps({"n": 1, "destinations": rows}, indent=1, ensure_ascii=ascii_only), "a"


def _as_text(places: Places) -> Iterator[tuple[str, str]]:
    # A line with a delimiter is a line of a table.
    if not any(set(f"{name}{country}") & set(",;|") or name.startswith("#") for name, country in places):
        yield "# title\n" + "\n".join(f"{name}, {country or ''}" for name, country in places), "a.txt"


@pytest.mark.parametrize("write", [_as_csv, _as_json, _as_text])
@settings(max_examples=50)
@given(places=_places)
def test_what_is_written_is_read_back(write: Callable[[Places], Iterator[tuple[str, str]]], places: Places) -> None:
    model = {(normalise(name), normalise(country or "")): (name, country) for name, country in reversed(places)}
    for text, name in write(places):
        destinations, report = read(text, name)
        assert report.rejected == 0
        assert {(d.name, d.country) for d in destinations} == set(model.values())
        assert (report.accepted, report.duplicates) == (len(model), len(places) - len(model))


_words = rb'" \ [ ] { } , : ; # - name "name": Kyoto NaN 1e9 destinations {"destinations":['.split(b" ")
_blanks_and_bytes = [b" ", b"\n", b"\r", b"\t", b"\xff", b"\xef\xbb\xbf", b"\xc3\xa9"]
_fragments = st.lists(st.sampled_from([*_words, *_blanks_and_bytes]), max_size=40).map(b"".join)


@given(
    data=st.binary(max_size=300) | _fragments,
    name=st.sampled_from(["a", "a.csv", "a.tsv", "a.json", "a.jsonl", "a.txt"]),
    strict=st.booleans(),
)
def test_whatever_the_bytes_only_an_input_error_is_raised(data: bytes, name: str, *, strict: bool) -> None:
    try:
        destinations, report = read(data, name, strict=strict)
    except InputError as exc:
        assert str(exc).startswith(name)  # noqa: PT017  # the other outcome is as good
    else:
        assert destinations
        assert report.rows == report.accepted + report.duplicates + report.rejected
        lines = data.replace(b"\r", b"\n").count(b"\n") + 1
        assert all(1 <= row.line <= lines for row in report.bad)
