"""Keeps what each case tells, and writes it where `--json` says."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.benchmarks import figures, record

LOAD: Final = os.getloadavg()[0]
FOLDER: Final = "tests/benchmarks/"
_exist: list[str] = []
_passed: set[str] = set()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--json", type=Path, metavar="FILE", help="merge the figures of the cases that ran into FILE")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before -k deselects: the record names what was not run."""
    _exist.extend(_case(item.nodeid) for item in items if item.nodeid.startswith(FOLDER))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with figures.telling(_case(item.nodeid)):
        return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        _passed.add(_case(report.nodeid))


def pytest_sessionfinish(session: pytest.Session) -> None:
    path: Path | None = session.config.getoption("json", None)
    if path is None:
        return
    run = record.this_run(session.config.invocation_params.args, LOAD)
    told = {case: some for case, some in figures.told.items() if case in _passed}
    record.write(path, record.merged(record.read(path), run, _exist, told))


def _case(node: str) -> str:
    return node.removeprefix(FOLDER)
