"""`themes results`: what is chosen, in which format, in how much memory. The real command over a real database."""

import asyncio
import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
import sqlite_utils

from tasks.errors import ConfigError
from tasks.messages import Destination, JobInputs, Result, Seasonality, Theme
from tests.support.forks import Forks
from tests.support.stored import announced, done, holding, places, theme
from workers.results.database.manager import AsyncDatabaseManager
from workers.results.queries.export import safe
from workers.results.queries.lookups import input_titles
from workers.results.queries.selection import Selection, month, where
from workers.results.queries.spelling import spelt

NAMES = ("Paris", "Lyon", "Kyoto", "=cmd|' /C calc'!A0")
COUNTRIES = ("France", "France", "Japan", None)


def results() -> tuple[list[Destination], list[Result]]:
    """Four destinations of two themes each: the second one food, surer from place to place."""
    towns, found = [], []
    for number, (name, country) in enumerate(zip(NAMES, COUNTRIES, strict=True)):
        town = Destination.of(name, country, extra={"tier": str(number % 2), "Öre 'x\"": "ß"})
        themes = [
            Theme(
                "t1", "culture", "Old streets", "Walks.", [], confidence=0.9, price_point="free",
                traveler_types=["solo"],
            ),
            Theme(
                "t2", "food", "-2+3 soups", "Hot.", ["a", "b"], confidence=number / 4, price_point="mid",
                traveler_types=["family", "solo"], seasonality=Seasonality(["July", "May"], ["August"]),
            ),
        ]  # fmt: skip
        towns.append(town)
        found.append(holding(town, done(town, partial=number == 1), themes=themes))
    return towns, found


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[AsyncDatabaseManager]:
    async with AsyncDatabaseManager(database_url, pool_size=3, timeout_seconds=180.0) as manager:
        towns, found = results()
        await manager.apply([*announced(*towns), *found])
        yield manager


ALL = Selection()


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (ALL, {name: ["t1", "t2"] for name in NAMES}),
        (replace(ALL, where={"country": ("France",)}), {"Paris": ["t1", "t2"], "Lyon": ["t1", "t2"]}),
        (replace(ALL, where={"name": ("Paris", "Kyoto"), "country": ("France",)}), {"Paris": ["t1", "t2"]}),
        (replace(ALL, where={"tier": ("1",), "Öre 'x\"": ("ß",)}), {"Lyon": ["t1", "t2"], NAMES[3]: ["t1", "t2"]}),
        (replace(ALL, where={"status": ("partial",)}), {"Lyon": ["t1", "t2"]}),
        (replace(ALL, min_quality=0.9), {}),
        (replace(ALL, categories=("food",)), {name: ["t2"] for name in NAMES}),
        (replace(ALL, categories=("food",), min_confidence=0.5), {"Kyoto": ["t2"], NAMES[3]: ["t2"]}),
        (replace(ALL, months=(5, 1), travelers=("family", "couple")), {name: ["t2"] for name in NAMES}),
        (replace(ALL, months=(8,)), {}),
        (replace(ALL, prices=("free",), travelers=("family",)), {}),
        (replace(ALL, travelers=("solo",), prices=("free", "mid")), {name: ["t1", "t2"] for name in NAMES}),
    ],
)
async def test_the_database_and_the_profile_agree_on_what_is_chosen(
    store: AsyncDatabaseManager, chosen: Selection, expected: dict[str, list[str]]
) -> None:
    rows = [row async for row in store.profiles("j", chosen.conditions(store.dialect))]
    profiles = [chosen.of(row.profile()) for row in rows]
    assert {profile.name: [theme.id for theme in profile.themes] for profile in profiles} == expected
    exported = [row async for row in store.exported("j", chosen.conditions(store.dialect))]
    assert [each.row for each in exported] == rows


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("country", "expected KEY=VALUE"),
        ("contry=France", "did you mean country?"),
        ("xyz=1", "no column 'xyz'; columns: name, country"),
    ],
)
def test_a_condition_that_means_nothing_is_refused_with_what_there_is(pair: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        where([pair], ["tier"])
    assert said in str(error.value)
    assert "tier" in str(error.value) or "=" not in pair


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (replace(ALL, where={"country": ("fRANCE",), "name": ("PARIS", "kyoto")}), ["Paris"]),
        (replace(ALL, where={"Öre 'x\"": ("SS",)}), list(NAMES)),
        (replace(ALL, where={"status": ("Partial",)}), ["Lyon"]),
        (replace(ALL, categories=("FOOD",), prices=("Mid",), travelers=("SOLO",)), list(NAMES)),
    ],
)
async def test_values_are_compared_without_case(
    store: AsyncDatabaseManager, chosen: Selection, expected: list[str]
) -> None:
    spelled, unknown = await spelt(store, "j", chosen)
    assert unknown == []
    rows = [row async for row in store.profiles("j", spelled.conditions(store.dialect))]
    assert [row.name for row in rows] == expected
    assert all(spelled.of(row.profile()).themes for row in rows)


async def test_all_spellings_of_a_value_are_found_and_a_letter_however_it_is_encoded(
    store: AsyncDatabaseManager,
) -> None:
    towns = [Destination.of(name, name) for name in ("Orléans", "Orle\u0301ans 2", "Straße")]
    towns.append(Destination.of("ORLÉANS", "y"))
    await store.apply([*announced(*towns, job="k"), *(done(town, job="k") for town in towns)])
    for asked, number in (("orléans", 2), ("ORLE\u0301ANS", 2), ("orléans 2", 1), ("STRASSE", 1)):
        spelled, unknown = await spelt(store, "k", replace(ALL, where={"name": (asked,)}))
        found = [row.name async for row in store.profiles("k", spelled.conditions(store.dialect))]
        assert (len(found), unknown) == (number, []), asked


async def test_a_value_that_nothing_has_is_named_with_what_there_is(store: AsyncDatabaseManager) -> None:
    spelled, unknown = await spelt(store, "j", replace(ALL, categories=("foood", "culture"), travelers=("dogs",)))
    assert spelled.categories == ("culture", "foood")
    assert unknown == [
        "--category foood: nothing has it; did you mean food? (known: culture, food)",
        "--traveler dogs: nothing has it; known: family, solo",
    ]
    towns = places(30)
    await store.apply([*announced(*towns, job="k"), *(done(town, job="k") for town in towns)])
    _, unknown = await spelt(store, "k", replace(ALL, where={"name": ("Rome",), "row": ("x",)}))
    assert [said.count("Town ") for said in unknown] == [10, 0]
    assert all(said.endswith(", …") for said in unknown), "a job has a million names"


async def test_the_order_is_that_of_the_input_or_of_what_was_finished_first(store: AsyncDatabaseManager) -> None:
    towns = places(1_203)
    await store.apply(announced(*towns, job="k"))
    finished = [*reversed(towns)]
    for start in range(0, len(finished), 400):
        await store.apply([done(town, job="k") for town in finished[start : start + 400]])
    await store.apply([done(towns[5], job="k", attempt=1, themes=1)])
    assert [row.destination_id async for row in store.profiles("k")] == [one.id for one in towns]
    seen = [row.destination_id async for row in store.profiles("k", as_finished=True)]
    assert seen == [one.id for one in finished]
    chosen = replace(ALL, where={"name": ("Town 7", "Town 900")}).conditions(store.dialect)
    rows = [row async for row in store.exported("k", chosen, as_finished=True)]
    assert [each.row.name for each in rows] == ["Town 900", "Town 7"]


def test_the_same_key_again_widens() -> None:
    assert where(["COUNTRY=a", "Tier=1"], ["tier", "TIER"]) == {"country": ("a",), "tier": ("1",)}
    assert where(["country=a", "country=b=c", "tier=1"], ["tier"]) == {"country": ("a", "b=c"), "tier": ("1",)}


def test_months_have_names_and_numbers() -> None:
    assert [month(text) for text in ("july", "JUL", "7", "12", "may")] == [7, 7, 7, 12, 5]
    for bad in ("13", "0", "ju", "x", "٣"):
        with pytest.raises(ConfigError, match="expected a month"):
            month(bad)


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\t=1", "  =1", "\uff1d1", "\n=1"])
def test_what_a_spreadsheet_takes_for_a_formula_becomes_text(text: str) -> None:
    assert safe(text) == "'" + text
    assert safe("a=1") == "a=1"


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A state directory with a finished job."""

    async def fill() -> None:
        async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{tmp_path / 'themes.db'}") as manager:
            towns, found = results()
            await manager.apply([*announced(*towns), *found])

    asyncio.run(fill())
    return tmp_path


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(forks: Forks) -> Run:
    """`themes results j` over a state directory."""

    def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "THEMES_STATE_DIR": str(folder)}
        return forks.run("results", "j", *arguments, env=env, stdin=None, timeout=180)

    return start


def test_every_format_has_the_same_themes(database: Path, run: Run) -> None:
    lines = [json.loads(line) for line in run(database, "--format", "jsonl").stdout.splitlines()]
    assert [line["name"] for line in lines] == list(NAMES)
    assert json.loads(run(database, "--format", "json").stdout) == lines
    rows = list(csv.DictReader(io.StringIO(run(database, "--format", "csv").stdout)))
    assert [row["theme"] for row in rows] == ["Old streets", "'-2+3 soups"] * 4
    assert rows[-1]["destination"] == "'" + NAMES[3]
    assert (rows[3]["confidence"], rows[3]["peak_months"], rows[3]["rank"]) == ("0.25", "July; May", "2")
    out = database / "out.parquet"
    assert run(database, "--format", "parquet", "-o", str(out)).returncode == 0
    table = pq.read_table(out).to_pylist()
    assert [row["theme"] for row in table] == ["Old streets", "-2+3 soups"] * 4
    assert (table[3]["confidence"], table[3]["peak_months"], table[3]["rank"]) == (0.25, ["July", "May"], 2)
    assert table[0]["peak_months"] is None
    assert "Kyoto, Japan" in run(database).stdout


JOINED = {"Status": "open", "id": "A-7", "=cmd": "@x", "Best for": "temples", "rank": "1"}


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    """A job of two destinations whose rows have columns of their own; the second has one that the first lacks."""

    async def fill() -> None:
        async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{tmp_path / 'themes.db'}") as manager:
            kyoto = Destination.of("Kyoto", "Japan", region="Kansai", lat=35.01, lon=135.77, extra=JOINED)
            oslo = Destination.of("Oslo", extra={"late": "1"})
            await manager.apply([*announced(kyoto, oslo), *(done(one, extra=one.extra) for one in (kyoto, oslo))])

    asyncio.run(fill())
    return tmp_path


def test_results_join_back_with_every_column_of_the_input(joined: Path, run: Run) -> None:
    lines = [json.loads(line) for line in run(joined, "--format", "jsonl").stdout.splitlines()]
    assert [(line["region"], line["lat"], line["lon"]) for line in lines] == [("Kansai", 35.01, 135.77), (None,) * 3]
    assert [line["extra"] for line in lines] == [JOINED, {"late": "1"}]
    assert lines[0]["quality_assessment"]["overall"] == 0.8
    assert json.loads(run(joined, "--format", "json", "--category", "food").stdout) == lines
    rows = list(csv.DictReader(io.StringIO(run(joined, "--format", "csv").stdout)))
    expected = {
        "destination": "Kyoto", "region": "Kansai", "lat": "35.01", "lon": "135.77", "quality": "0.8", "status": "ok",
        "input_Status": "open", "id": "A-7", "'=cmd": "'@x", "Best for": "temples", "input_rank": "1", "late": "",
    }  # fmt: skip
    assert {name: rows[0][name] for name in expected} == expected
    assert (rows[-1]["destination"], rows[-1]["late"], rows[-1]["id"]) == ("Oslo", "1", "")
    out = joined / "out.parquet"
    assert run(joined, "--format", "parquet", "-o", str(out)).returncode == 0
    (first, *_, last) = pq.read_table(out).to_pylist()
    assert (first["lat"], first["quality"], first["input_Status"], first["=cmd"]) == (35.01, 0.8, "open", "@x")
    assert (last["late"], last["id"], last["region"]) == ("1", None, None)
    table = run(joined).stdout.splitlines()
    assert table[0].split()[:2] == ["id", "destination"]
    assert table[1].split()[:2] == ["A-7", "Kyoto,"]
    chosen = run(joined, "--format", "jsonl", "--where", "late=1").stdout.splitlines()
    assert [json.loads(line)["name"] for line in chosen] == ["Oslo"]


async def test_the_titles_of_an_input_come_in_their_order(store: AsyncDatabaseManager) -> None:
    more = [Destination.of("Oslo", extra={"z": "1", "a": "2"}), Destination.of("Rome", extra={"b": "", "a": "3"})]
    await store.apply([JobInputs("other", (more[0],)), JobInputs("other", (more[1],))])
    assert await input_titles(store, "other") == ["z", "a", "b"]
    assert await input_titles(store, "j") == ["tier", "Öre 'x\""]
    assert await input_titles(store, "none") == []


def test_choices_on_the_command_line(database: Path, run: Run) -> None:
    said = run(database, "--format", "jsonl", "--where", "country=France", "--category", "food", "--month", "jul")
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    assert [(line["name"], [theme["id"] for theme in line["themes"]]) for line in lines] == [
        ("Paris", ["t2"]), ("Lyon", ["t2"]),
    ]  # fmt: skip
    nothing = run(database, "--format", "json", "--where", "country=Frence")
    assert (nothing.returncode, nothing.stdout) == (1, "[]\n")
    assert nothing.stderr == (
        "themes: --where country=Frence: nothing has it; did you mean France? (known: France, Japan)\n"
    )
    both = run(database, "--format", "jsonl", "--category", "Food", "--category", "nope", "--where", "COUNTRY=japan")
    assert (both.returncode, json.loads(both.stdout)["name"]) == (0, "Kyoto")
    assert "--category nope: nothing has it" in both.stderr
    together = run(database, "--where", "country=japan", "--where", "name=paris")
    assert together.returncode == 1
    assert "no profile of job j meets all of the options" in together.stderr
    assert len(run(database, "--format", "jsonl", "--limit", "3").stdout.splitlines()) == 3
    for arguments, words in (
        (("--where", "tear=1"), "did you mean tier?"),
        (("--min-confidence", "2"), "0<=x<=1"),
        (("--month", "soon"), "expected a month"),
        (("--format", "parquet"), "-o FILE"),
    ):
        said = run(database, *arguments)
        assert (said.returncode, said.stdout) == (2, "")
        assert words in said.stderr


def test_a_file_is_there_whole_or_not_at_all(database: Path, run: Run) -> None:
    out = database / "out.csv"
    out.write_text("before")
    said = run(database, "--format", "csv", "-o", str(out), "--where", "nope=1")
    assert said.returncode == 2
    assert out.read_text() == "before"
    assert [file.name for file in database.iterdir() if "out.csv" in file.name] == ["out.csv"]
    assert run(database, "--format", "csv", "-o", str(out), "--force").returncode == 0
    assert out.read_text().startswith("destination,")
    full = run(database, "--format", "jsonl", "-o", "/dev/full")
    assert full.returncode == 2
    assert "/dev/full: cannot be written (No space left on device)" in full.stderr
    assert "Traceback" not in full.stderr
    missing = run(database, "-o", str(database / "no" / "such" / "file"))
    assert (missing.returncode, "No such file" in missing.stderr) == (2, True)


def test_a_finished_database_opens_in_other_tools_as_it_is(database: Path) -> None:
    opened = sqlite_utils.Database(database / "themes.db")
    assert {"jobs", "profiles", "profile_themes"} <= set(opened.table_names())
    assert {
        "themes",
        "theme_months",
        "stages",
        "newest_profiles",
        "destinations_by_theme",
        "top_themes_by_country",
    } <= set(opened.view_names())
    assert opened["profiles"].count == 4
    assert opened["profile_themes"].foreign_keys
    assert opened.query("SELECT count(*) AS n FROM destinations_by_month WHERE month = 5").__next__()["n"] == 4
    opened.close()


# --- size ---------------------------------------------------------------------------------------------------------

LARGE = 4_500


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A job of 4,500 profiles of 16 KB, which are 70 MB."""
    folder = tmp_path_factory.mktemp("large")

    async def fill() -> None:
        async with AsyncDatabaseManager(f"sqlite+aiosqlite:///{folder / 'themes.db'}") as manager:
            towns = [Destination.of(f"Town {n}", "Utopia") for n in range(LARGE)]
            await manager.apply([JobInputs("j", tuple(towns))])
            themes = [msgspec.structs.replace(theme(n), description="x" * 2_500) for n in range(3)]
            for at in range(0, LARGE, 500):
                profiles = [holding(town, themes=themes, more={"told": "x" * 8_500}) for town in towns[at : at + 500]]
                await manager.apply(profiles)

    asyncio.run(fill())
    yield folder
    (folder / "themes.db").unlink()


#: Each list of arguments is a command; prints the most memory in MB that the process has held after each.
_PEAKS = r"""
import contextlib, json, os, re, sys
from scripts.main import cli
from workers.results.queries import export
export.ROW_GROUP = 1_000
peaks = []
for command in json.loads(sys.argv[1]):
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        assert not cli.main(command, standalone_mode=False)
    peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) / 1024)
print(json.dumps(peaks))
"""


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "table"])
def test_a_large_job_needs_no_more_memory_than_a_small_one(large: Path, kind: str, tmp_path: Path) -> None:
    command = ["results", "j", "--format", kind, "-o", str(tmp_path / "out"), "--force"]
    commands = [[*command, "--limit", "500"], command, [*command, "--order", "finished"]]
    run = subprocess.run(
        [sys.executable, "-c", _PEAKS, json.dumps(commands)], env={**os.environ, "THEMES_STATE_DIR": str(large)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    small, *whole = json.loads(run.stdout)
    # The part of the file that readers map counts as theirs, 32 MB.
    assert [peak for peak in whole if peak > small + 32 + 25] == []


def test_who_reads_slowly_does_not_hold_up_the_log_of_the_writer(large: Path) -> None:
    env = {**os.environ, "THEMES_STATE_DIR": str(large)}
    command = [sys.executable, "-m", "scripts.main", "results", "j", "--format", "jsonl"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        assert reader.stdout
        assert reader.stderr
        assert reader.stdout.readline()
        # It now waits for us, with most of the job before it; the writer goes on, and its log begins anew.
        with sqlite3.connect(large / "themes.db", isolation_level=None, timeout=0) as writer:
            for number in range(200):
                writer.execute("BEGIN IMMEDIATE")
                writer.execute("UPDATE jobs SET name = ?", [f"{number}"])
                writer.execute("COMMIT")
            busy, frames, copied = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        writer.close()
        assert (busy, frames, copied) == (0, 0, 0)
        reader.stdout.close()  # as `| head -1` does
        assert reader.wait(180) == 0
        assert reader.stderr.read() == b""
