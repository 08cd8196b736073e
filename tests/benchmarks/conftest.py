"""Keeps what each case tells, and writes it where `--json` says; not what a noisy machine measured."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.benchmarks import figures, record
from tests.benchmarks.noise import Others, allowed

LOAD: Final = os.getloadavg()[0]
FOLDER: Final = "tests/benchmarks/"
_exist: list[str] = []
_passed: set[str] = set()
#: Cores that others used on average, while each case ran.
_others: dict[str, float] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--json", type=Path, metavar="FILE", help="merge the figures of the cases that ran into FILE")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before -k deselects: the record names what was not run."""
    _exist.extend(_case(item.nodeid) for item in items if item.nodeid.startswith(FOLDER))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with figures.telling(_case(item.nodeid)):
        others = Others()
        try:
            return (yield)
        finally:
            _others[_case(item.nodeid)] = others.share()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        _passed.add(_case(report.nodeid))


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("json", None)
    if path is None:
        return
    run = record.this_run(session.config.invocation_params.args, LOAD)
    quiet = {case: share for case, share in _others.items() if case in _passed and share <= allowed()}
    measured = {case: record.Case(run.date, figures.told[case], round(share, 3)) for case, share in quiet.items()}
    record.write(path, record.merged(record.read(path), run, _exist, measured))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for case, share in _others.items():
        if share > allowed():
            words = f"{case}: not kept, the machine was too noisy: others used {share:.2f} of a core all the while"
            terminalreporter.write_line(f"{words} (BENCH_NOISE={allowed():.2f} are allowed)")


def _case(node: str) -> str:
    return node.removeprefix(FOLDER)
