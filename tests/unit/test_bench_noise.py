"""What others use of the machine is told apart from what the benchmark itself uses."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.benchmarks import noise

BURN = "import time\nwhile time.process_time() < 0.5: pass\nopen({path!r}, 'w').close()\ntime.sleep(60)"


@pytest.mark.parametrize("marked", [True, False])
def test_a_process_that_left_its_parent_is_known_by_its_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, marked: bool
) -> None:
    monkeypatch.setenv(noise.MARK, "")  # back to what it was, afterwards
    others = noise.Others()
    began = time.monotonic()
    env = {key: value for key, value in os.environ.items() if marked or key != noise.MARK}
    done, code = tmp_path / "done", BURN.format(path=str(tmp_path / "done"))
    said = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" >/dev/null 2>&1 & echo $!', sys.executable, code],
        env=env,
        capture_output=True,
        check=True,
    )
    pid = int(said.stdout)
    try:
        while not done.exists():
            time.sleep(0.01)
        assert noise._is_marked(pid) is marked
        used = others.share() * (time.monotonic() - began)
        if not marked:
            assert used >= 0.4
    finally:
        os.kill(pid, 9)
