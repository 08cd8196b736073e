"""Environments of peers: what `FOLDER/NAME.txt` pins, in `.venv/peers/NAME`, made on first use."""

import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


def environment(pins: Path) -> Path:
    """The interpreter of an environment with these pins.

    Raises:
        RuntimeError: it cannot be made; with pip's last words.
    """
    place = ROOT / ".venv" / "peers" / pins.stem
    made, wanted, python = place / "made-for.txt", pins.read_text("utf-8"), place / "bin" / "python"
    if not made.exists() or made.read_text("utf-8") != wanted:
        install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "-r", pins]
        for command in ([sys.executable, "-m", "venv", "--clear", place], install):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{pins.name}: {done.stderr.strip()[-500:]}")
        made.write_text(wanted, "utf-8")
    return python
