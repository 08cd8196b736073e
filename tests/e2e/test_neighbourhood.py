"""What lies in the current directory is never run."""

import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import Engine, until

#: Modules that our processes import, as files that somebody else may have put where the user stands.
FILES = (
    "yaml.py", "redis.py", "click.py", "celery.py", "flowerconfig.py", "celeryconfig.py", "sitecustomize.py",
    "scripts/__init__.py", "scripts/main.py", "scripts/celery_worker.py", "workers/__init__.py", "workers/app.py",
    "config/settings.py", "tasks/queue/app.py",
)  # fmt: skip


def test_no_role_imports_from_the_current_directory(engine: Engine, tmp_path: Path) -> None:
    here = tmp_path / "here"
    for name in FILES:
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n")
    (here / "cities.txt").write_text("Kyoto\nParis\n")
    themes = Path(sys.executable).with_name("themes")
    env = {key: value for key, value in engine.env.items() if key != "PYTHONPATH"}
    with (tmp_path / "up.log").open("wb") as log:
        up = subprocess.Popen(
            [themes, "up", "--sandbox", "--workers", "1"],
            cwd=here,
            env=env,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            until("the stack", lambda: re.search("http://127.0.0.1", (tmp_path / "up.log").read_text()))
            command = [themes, "enqueue", "cities.txt", "--wait"]
            said = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, check=False)
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(180)
    assert said.returncode == 0, said.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
