"""docs/benchmarks/numbers.md says what the benchmarks have measured, and nothing else."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from docs._generate import headlines, scale
from tests.benchmarks import figures, record
from tests.benchmarks.figures import Figure
from tests.benchmarks.record import Case, Record, Run

DOCS = Path(__file__).parents[2] / "docs"
FIRST, *_, LAST = (f"{one.file}::{one.name}" for one in record.described())


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_figures", DOCS / "_generate" / "figures.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(date: str) -> Run:
    return Run(date, "0123456789ab", "scripts/bench", 0.5, {"CPU": "one"})


def _figure(median: float, *, runs: int = 3) -> Figure:
    return Figure("a case", "a title", "ms", median, median / 2, median * 2, runs)


def test_the_page_is_what_the_record_makes_of_it(maker: ModuleType) -> None:
    made = maker.page(record.read(maker.FIGURES))
    assert made == maker.PAGE.read_text(), "python docs/_generate/figures.py"


def test_the_charts_are_what_the_record_makes_of_them(maker: ModuleType) -> None:
    drawn = maker.charts(record.read(maker.FIGURES))
    kept = {path.name: path.read_text() for path in maker.PAGE.parent.glob("*.svg")}
    assert kept == drawn, "python docs/_generate/figures.py"


def test_the_page_of_scale_is_what_the_record_makes_of_it() -> None:
    made = scale.page(record.read(scale.FIGURES))
    assert made == (scale.PAGE.read_text() if scale.PAGE.exists() else ""), "python docs/_generate/scale.py"


def test_the_guide_to_capacity_is_what_the_record_makes_of_it() -> None:
    made = scale.guide(record.read(scale.FIGURES))
    assert made == (scale.GUIDE.read_text() if scale.GUIDE.exists() else ""), "python docs/_generate/scale.py"


def test_what_more_destinations_need_follows_from_the_figures() -> None:
    def figures(case: str, *, redis_ms: float) -> list[Figure]:
        roles = {"worker": 20.0, "consumer": 5.0, "Redis": redis_ms, "producer": 1.0}
        told = {f"CPU a destination, {role}": (ms, "ms") for role, ms in roles.items()}
        told |= {f"memory at most, {role}": (80.0, "MB") for role in roles}
        told |= dict.fromkeys(("the database, a destination", "Redis keeps, a destination"), (20.0, "KB"))
        told |= {"enqueued to durable": (9.0, "s"), "destinations": (9.0, "a second")}
        return [Figure(case, title, unit, value, value, value, 1) for title, (value, unit) in told.items()]

    waiting = Figure("rows", "Redis holds, a waiting destination", "bytes", 50.0, 50.0, 50.0, 1)
    cases = {
        "test_scale.py::test_scale_of_light_destinations": Case("then", figures("100 destinations", redis_ms=9.0)),
        "test_scale.py::test_scale_of_full_destinations": Case("then", figures("100 destinations", redis_ms=2.0)),
    }
    assert scale.page(Record([_run("then")], cases)) == "", "nothing is made up"
    whole = Record([_run("then")], cases | {"test_hot_path.py::test_a": Case("then", [waiting])})
    page = scale.page(whole)
    assert "| CPU a destination, Redis, ms | 9 |" in page
    assert "| Redis, part of a core | 2 ms * destinations a second | 8% |" in page
    assert "| memory of Redis for what waits | 50 bytes * 100,000,000 | 5 GB |" in page
    assert "| the database | 20 KB * 100,000,000 | 2 TB |" in page
    guide = scale.guide(whole)
    assert "| memory of Redis | 5 MB that wait + 2 GB of the cache | 2 GB |" in guide
    assert "| memory of all workers | 8 * 80 MB | 640 MB |" in guide


def test_the_measured_lines_of_the_readme_are_what_the_record_makes_of_them() -> None:
    text = headlines.README.read_text()
    kept = record.read(headlines.FIGURES)
    assert headlines.block(kept), "scripts/bench jobs; scripts/bench peers; scripts/bench whole"
    assert headlines.written(text, kept) == text, "python docs/_generate/headlines.py"


def test_a_headline_is_its_figure() -> None:
    cases: dict[str, Case] = {}
    for number, (test, who, title) in enumerate(headlines.PLACES.values(), 1):
        told = Figure(who, title, "of 200" if title.startswith("killed") else "", number, number, number, 1)
        kept = cases.get(test, Case("then"))
        cases[test] = Case("then", [*kept.figures, told])
    lines = headlines.block(Record([_run("then")], cases))
    assert "1 of 200 destinations without a row;\n  Celery as people write it loses 2, dramatiq 3, taskiq 4" in lines
    assert "costs 13 ms in all processes, 14 a second" in lines
    cases.popitem()
    assert headlines.block(Record([_run("then")], cases)) == "", "nothing is made up"
    assert headlines.written("<!-- measured -->\nold\n<!-- /measured -->", Record()) == (
        "<!-- measured -->\nold\n<!-- /measured -->"
    )


def test_a_promise_that_was_missed_is_drawn_as_such(maker: ModuleType) -> None:
    told = [
        Figure("with it, less", "persistent cache: LLM calls", "%", 69.6, 69, 70, 3),
        Figure("with it, less", "work stealing: seconds of a job", "%", -8, -20, 5, 3),
    ]
    picture = maker.charts(Record([], {"test_promises.py::test_promises": Case("then", told)}))["promises.svg"]
    assert ">70 %<" in picture
    assert picture.count('class="ours"') == picture.count('class="less"') == 1
    assert ">promised 30 to 50 %<" in picture


def test_a_contestant_without_a_figure_is_drawn_without_a_bar(maker: ModuleType) -> None:
    first, calls = "200 ms: first result after", "200 ms, 30 % repeated: LLM calls a destination"
    told = [Figure("ours", first, "s", 2, 2, 2, 1), Figure("ours", calls, "", 11, 11, 11, 1)]
    told.append(Figure("Celery", first, "s", 4, 4, 4, 1))
    picture = maker.charts(Record([], {"test_jobs.py::test_jobs": Case("then", told)}))["jobs.svg"]
    assert (picture.count('class="ours"'), picture.count('class="bar"')) == (2, 1)
    assert picture.count("cannot, or was not measured") == 1


def test_the_record_has_every_case_that_exists_and_no_other(maker: ModuleType) -> None:
    cases = dict.fromkeys(record.test_of(case) for case in record.read(maker.FIGURES).cases)
    wanted = [f"{one.file}::{one.name}" for one in record.described()]
    assert list(cases) == wanted, "scripts/bench -k CASE --json docs/benchmarks/numbers.json"
    assert maker.FIGURES.stat().st_size < 100_000


def test_the_page_names_what_was_not_run(maker: ModuleType) -> None:
    page = maker.page(Record([_run("then")], {FIRST: Case("then", [_figure(1.0)]), LAST: Case()}))
    assert re.findall("Not run: (.*)[.]", page) == [f"`{LAST.partition('::')[2]}`"]


def test_every_case_says_what_it_is_and_stands_in_a_section(maker: ModuleType) -> None:
    for one in record.described():
        assert one.words.startswith(("Layer", "Whole system.")), f"{one.file}::{one.name}"
    assert {one.file for one in record.described()} == set(maker.SECTIONS)


def test_the_record_names_no_place_of_the_machine(maker: ModuleType) -> None:
    for run in record.read(maker.FIGURES).runs:
        assert not re.search(r"(?:^|[\s='\"])/\w", run.command), run.command


def test_cases_that_ran_replace_their_figures_and_the_others_stay() -> None:
    old = Record([_run("1"), _run("0")], {FIRST: Case("1", [_figure(1.0)]), LAST: Case("0", [_figure(2.0)])})
    new = record.merged(old, _run("2"), [FIRST, LAST], {LAST: Case("2", [_figure(3.0)], 0.01)})
    assert (new.cases[FIRST], new.cases[LAST]) == (old.cases[FIRST], Case("2", [_figure(3.0)], 0.01))
    assert [run.date for run in new.runs] == ["1", "2"]
    assert {record.test_of(case) for case in new.cases} == {f"{one.file}::{one.name}" for one in record.described()}


def test_cases_and_parameters_that_are_gone_leave_the_record() -> None:
    old = Record([_run("1")], {"test_gone.py::test_gone": Case("1", [_figure(1.0)]), f"{LAST}[old]": Case("1")})
    new = record.merged(old, _run("2"), [f"{LAST}[new]"], {f"{LAST}[new]": Case("2", [_figure(1.0)])})
    assert [case for case in new.cases if case.startswith((LAST, "test_gone"))] == [f"{LAST}[new]"]
    assert [run.date for run in new.runs] == ["2"]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    kept = record.merged(Record(), _run("1"), [FIRST], {FIRST: Case("1", [_figure(1.0), _figure(2.0)])})
    record.write(path, kept)
    assert record.read(path) == kept
    assert path.read_text().count('\n    ["a case", ') == 2, "a line a figure"


def test_the_command_has_its_knobs_and_no_places() -> None:
    said = ["-q", "-m", "benchmark", "tests/benchmarks", "-k", "a or b", "--json", "/a/x", "--basetemp=/a/y", "-x"]
    assert (
        record.command(said, {"BENCH_REPEATS": "1", "HOME": "/home"}) == "BENCH_REPEATS=1 scripts/bench -k 'a or b' -x"
    )


def test_a_figure_is_the_middle_with_its_ends() -> None:
    with figures.telling("a test"):
        figures.tell("a case", "a title", [3.0, 1.0, 2.00004], "ms")
    assert figures.told.pop("a test") == [Figure("a case", "a title", "ms", 2.0, 1.0, 3.0, 3)]


def test_ratios_are_taken_turn_by_turn() -> None:
    assert figures.ratios([1.0, 4.0], [2.0, 1.0]) == [0.5, 4.0]
    with pytest.raises(ValueError, match="shorter"):
        figures.ratios([1.0], [])


def test_a_table_has_a_row_a_figure_and_a_column_a_case(maker: ModuleType) -> None:
    one, other = Figure("x|y", "speed", "ms", 1234.6, 1000, 2000, 3), Figure("z", "size", "", 5.0, 5.0, 5.0, 1)
    assert list(maker.table([one, other])) == [
        "| runs: 1 or 3 | x\\|y | z |",
        "|---|---|---|",
        "| speed, ms | 1,235 (1,000 to 2,000) |  |",
        "| size |  | 5 |",
    ]


def test_what_passed_is_written_by_the_name_of_its_case(tmp_path: Path) -> None:
    folder, path = tmp_path / "tests" / "benchmarks", tmp_path / "figures.json"
    folder.mkdir(parents=True)
    (folder / "test_whole.py").write_text(
        "from tests.benchmarks.figures import tell\n"
        "def test_whole_uncached(): tell('a case', 'a title', [1.0, 3.0], 'ms')\n"
        "def test_whole_cached(): tell('a case', 'a title', [1.0], 'ms'); assert False\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.benchmarks.conftest",
        "--rootdir",
        tmp_path,
        "-c",
        os.devnull,
    ]
    for noise in ("-1", "100"):
        env = os.environ | {"BENCH_NOISE": noise, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(
            [*command, "-c", os.devnull, folder, "--json", path],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
        assert ("test_whole_uncached: not kept, the machine was too noisy" in done.stdout) is (noise == "-1")
        if noise == "-1":
            assert not [case for case in record.read(path).cases.values() if case.figures]
    written = record.read(path)
    (run,) = written.runs
    assert run.command == "BENCH_NOISE=100 scripts/bench"
    assert {case: kept.figures for case, kept in written.cases.items() if kept.figures} == {
        "test_whole.py::test_whole_uncached": [Figure("a case", "a title", "ms", 2.0, 1.0, 3.0, 2)]
    }
