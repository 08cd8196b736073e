"""`themes config migrate`: today's names in a file that keeps its comments, its order, and its meaning."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as each
from hypothesis import strategies as st

from config import legacy
from config.errors import ConfigError
from config.migrate import migrated
from config.settings import load, notices
from tests.unit.test_legacy import NESTED, PERFORMANCE

OLD = """\
# What we run with.
performance:  # since 2023
  # How many at once.
  max_parallel_llm_requests: 7   # the endpoint takes 8

  # Not needed any more?
  enable_progress_bars: true  # nice
  # One message.
  chunk_size: 20  # small
  max_llm_retries: 1
  max_worker_threads: "4"

work:
    lease_seconds: 20   # slow disk
    # the last line of work
llm:
  model: a-model
"""
NEW = """\
# What we run with.
performance_optimization:  # since 2023
  # How many at once.
  llm_connection_pool_size: 7   # the endpoint takes 8

  # Not needed any more?
  # performance.enable_progress_bars: true (WHY) # nice
  max_llm_retries: 1
  worker_pool_size: "4"

work:
    lease_seconds: 20   # slow disk
    # One message.
    max_chunk_size: 20  # small
    # the last line of work
llm:
  model: a-model
""".replace("WHY", legacy.MEANINGLESS["performance.enable_progress_bars"])


def written(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def migrate(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.main", "config", "migrate", *map(str, arguments)]
    return subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False, timeout=60)


def test_comments_order_and_formatting_are_kept(tmp_path: Path) -> None:
    assert migrated(written(tmp_path, OLD)) == NEW
    assert migrated(written(tmp_path, NEW)) == NEW


def test_a_nested_section_moves_out_with_its_comments(tmp_path: Path) -> None:
    text = (
        "performance_optimization:\n   enabled: false\n   llm_connection_pool:  # to the LLM\n"
        "      # at once\n      max_connections: 9  # nine\n      connection_timeout: 3\n   cache_ttl_days: 3\n"
        "   persistent_cache:\n      redis_port: 7000  # ours\n      redis_password: hunter2 # secret\n"
        "llm:\n  model: x"
    )
    assert migrated(written(tmp_path, text)) == (
        "performance_optimization:\n"
        "   # performance_optimization.enabled: false (each optimisation has a switch of its own; "
        "THEMES_ENV=conservative turns all off)\n"
        "   # to the LLM\n   # at once\n   llm_connection_pool_size: 9  # nine\n   cache_ttl_days: 3\n"
        "   redis_url: redis://:hunter2@localhost:7000/1  # ours\n   # secret\n"
        "llm:\n  model: x\n  connect_timeout_seconds: 3\n"
    )


def test_the_section_performance_joins_that_of_today_where_both_are_there(tmp_path: Path) -> None:
    text = (
        "performance:\n  # lanes\n  max_worker_threads: 3\n  max_llm_retries: 5\n"
        "performance_optimization:\n  max_llm_retries: 0\n"
    )
    assert migrated(written(tmp_path, text)) == (
        "  # performance.max_llm_retries: 5 (passed over: performance_optimization.max_llm_retries wins)\n"
        "performance_optimization:\n  max_llm_retries: 0\n  # lanes\n  worker_pool_size: 3\n"
    )


def test_line_ends_and_the_byte_order_mark_are_kept(tmp_path: Path) -> None:
    file = written(tmp_path, b"\xef\xbb\xbfperformance:\r\n  chunk_size: 9\r\n  max_llm_retries: 1\r\n")
    assert migrate(file, "--in-place").returncode == 0
    assert file.read_bytes() == (
        b"\xef\xbb\xbfperformance_optimization:\r\n  max_llm_retries: 1\r\n\r\nwork:\r\n  max_chunk_size: 9\r\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("performance: {max_worker_threads: 3}\n", "mine.yaml:1: performance is written in braces"),
        (
            "performance_optimization:\n  database_pool: {batch_size: 3}\n",
            "mine.yaml:2: database_pool is written in braces",
        ),
        (
            "performance:\n  max_worker_threads:\n    3\n",
            "mine.yaml:2: performance.max_worker_threads cannot be rewritten here; write it on one line",
        ),
        ("performance:\n  chunk_size: 3\nwork: {}\n", "mine.yaml:3: work is written in braces"),
        ("performance:\n  max_worker_threads: x\n", "performance_optimization.worker_pool_size: expected a whole"),
    ],
)
def test_what_cannot_be_rewritten_is_refused_with_its_place_and_left_alone(
    tmp_path: Path, text: str, message: str
) -> None:
    file = written(tmp_path, text)
    run = migrate(file, "--in-place")
    assert run.returncode == 2
    assert run.stderr.startswith(f"themes: {message}")
    assert len(run.stderr.splitlines()) == 1
    assert file.read_text() == text


def test_it_goes_to_standard_output_to_another_file_or_in_place_and_twice_changes_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, "performance:\n  max_worker_threads: 3\n")
    file.chmod(0o600)
    new = "performance_optimization:\n  worker_pool_size: 3\n"
    assert migrate(file).stdout == new
    out = tmp_path / "out.yaml"
    assert migrate(file, "-o", out).returncode == 0
    assert out.read_text() == new
    assert "performance:" in file.read_text()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert migrate(file, "--in-place").returncode == 0
    before = file.stat()
    again = migrate(file, "--in-place")
    assert "nothing to rewrite" in again.stderr
    assert (file.read_text(), file.stat().st_ino) == (new, before.st_ino)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "out.yaml"]
    both = migrate(file, "--in-place", "-o", out)
    assert both.returncode == 2
    assert "choose one" in both.stderr


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    run = migrate(written(tmp_path, "performance:\n  max_worker_threads: 3\n"), "-o", tmp_path / "none" / "x.yaml")
    assert run.returncode == 2
    assert run.stderr.startswith(f"themes: {tmp_path}/none/x.yaml: cannot be written")


# --- properties ---

_OLD = {f"performance.{name}": value for name, (value, _, _) in PERFORMANCE.items()} | {
    f"performance_optimization.{name}": value for name, (value, _, _) in NESTED.items()
}
_TODAY = {
    "performance_optimization.max_llm_retries": "0",
    "performance_optimization.worker_pool_size": "2",
    "performance_optimization.llm_connection_pool_size": "6",
    "work.max_chunk_size": "7",
    "llm.connect_timeout_seconds": "1.5",
    "llm.model": "12:30",
    "streaming.chunk_size": "90",
    "state_dir": "here",
}
_remarks = st.sampled_from(["", "", "  # a remark: with a colon", " #x"])


@st.composite
def old_files(draw: st.DrawFn) -> str:
    """A right settings file with old and new names, comments, blank lines and odd indents."""
    names = draw(st.lists(st.sampled_from(sorted(_OLD | _TODAY)), unique=True, max_size=14))
    values = _OLD | _TODAY
    width = draw(st.sampled_from([1, 2, 4]))
    blocks: dict[str, list[str]] = {}
    for name in names:
        *sections, leaf = name.split(".")
        value = values[name]
        if value.isdigit() and draw(st.booleans()):
            value = f"'{value}'"
        line = f"{leaf}: {value}{draw(_remarks)}"
        above = draw(st.sampled_from([[], ["# about it"], ["", "# one", "# two"]]))
        blocks.setdefault(".".join(sections), []).extend([*above, line])
    top = draw(st.permutations([name for name in blocks if "." not in name]))
    if any("." in name for name in blocks) and "performance_optimization" not in top:
        top = [*top, "performance_optimization"]
    lines = ["# the file"]
    for section in top:
        indent = " " * width if section else ""
        lines += [f"{section}:{draw(_remarks)}"] if section else []
        lines += [f"{indent}{line}" if line else "" for line in blocks.get(section, [])]
        for nested in [name for name in blocks if section and name.startswith(f"{section}.")]:
            lines += [f"{indent}{nested.partition('.')[2]}:{draw(_remarks)}"]
            lines += [f"{indent * 2}{line}" if line else "" for line in blocks[nested]]
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    return newline.join(lines) + draw(st.sampled_from(["", newline, newline * 2]))


@each(deadline=None)
@given(text=old_files())
def test_the_migrated_file_means_the_same_says_nothing_and_keeps_every_comment(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "some.yaml"
    file.write_bytes(text.encode())
    before = load(path=file, env={})
    after = migrated(file)
    file.write_bytes(after.encode())
    settings = load(path=file, env={})
    assert settings == before
    assert notices(settings) == []
    assert migrated(file) == after
    for remark in ("# the file", "# about it", "# one", "# two", "# a remark: with a colon", "#x"):
        assert after.count(remark) == text.count(remark), remark
    assert ("\r\n" in text) == ("\r\n" in after) or "\n" not in text


_any_line = st.tuples(
    st.sampled_from(["", "  ", "    ", "\t"]),
    st.sampled_from(
        [*legacy.NESTED, "performance", "performance_optimization", "max_worker_threads", "redis_host", "x"]
    ),
    st.sampled_from([":", ": 3", ": {a: 1}", ": [", ": |", ": &a 3", ": *a", ": !!int 3", ": '", ": null", " # x"]),
).map("".join)


@each(deadline=None)
@given(lines=st.lists(_any_line, max_size=8))
def test_whatever_stands_in_a_file_it_is_rewritten_or_refused(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text("\n".join(lines))
    try:
        before = load(path=file, env={})
        file.write_text(migrated(file))
    except ConfigError as exc:
        assert "any.yaml" in str(exc)  # noqa: PT017  # rewritten is as good
    else:
        assert load(path=file, env={}) == before
