"""Environments of peers: what `FOLDER/NAME.txt` pins, in `.venv/peers/NAME`, made on first use.

`python -m tests.benchmarks.environments` makes all of them.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
#: Seconds that one command of pip's may take.
INSTALL_SECONDS: Final = 600.0
#: Pins whose environment could not be made, and why: it is not tried again in this run.
_missing: Final[dict[Path, str]] = {}


def environment(pins: Path) -> Path:
    """The interpreter of an environment with these pins.

    Raises:
        RuntimeError: it cannot be made; with pip's last words.
    """
    place = ROOT / ".venv" / "peers" / pins.stem
    made, wanted, python = place / "made-for.txt", pins.read_text("utf-8"), place / "bin" / "python"
    if made.exists() and made.read_text("utf-8") == wanted:
        return python
    if pins not in _missing:
        print(f"making the environment of {pins.stem} (once) ...", flush=True)
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "-r", pins]
        why = _failed([sys.executable, "-m", "venv", "--clear", place]) or _failed(install)
        if not why:
            made.write_text(wanted, "utf-8")
            return python
        _missing[pins] = f"{pins.name} cannot be installed: {why}"
    raise RuntimeError(_missing[pins])


def _failed(command: list[str | Path]) -> str:
    """Why a command failed; empty where it did not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not in {INSTALL_SECONDS:.0f} s"
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return (lines or [done.stderr.strip()[-500:] or "no reason given"])[-1] if done.returncode else ""


if __name__ == "__main__":
    for found in sorted(Path(__file__).parent.glob("*/*.txt")):
        try:
            environment(found)
        except RuntimeError as exc:
            print(exc)
