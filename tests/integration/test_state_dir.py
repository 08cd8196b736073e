"""The state directory is its user's alone, whatever others have put there."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from config.settings import Settings
from scripts.lib.local_redis import LocalRedis
from scripts.lib.stack import database_place
from tasks.connection import ADDRESS_FILE, locate
from tasks.errors import ConfigError
from tasks.state_dir import make_private
from workers.local.state_file import StateFile
from workers.results.database.manager import AsyncDatabaseManager

MakeSettings = Callable[..., Settings]
ROOT = Path(__file__).resolve().parents[2]
SOMEBODY = 65_533
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")


@as_root
def test_a_directory_of_another_user_is_refused_with_the_mend(settings_for: MakeSettings, tmp_path: Path) -> None:
    folder = tmp_path / "var"
    folder.mkdir(mode=0o755)
    os.chown(folder, SOMEBODY, SOMEBODY)
    for use in (lambda: LocalRedis(folder).__enter__(), lambda: StateFile(folder).__enter__(),
                lambda: locate(settings_for(THEMES_STATE_DIR=str(folder)))):  # fmt: skip
        with pytest.raises(ConfigError, match="belongs to another user .*THEMES_STATE_DIR"):
            use()


@as_root
def test_an_address_that_another_user_left_is_not_believed(settings_for: MakeSettings, tmp_path: Path) -> None:
    (tmp_path / ADDRESS_FILE).write_text("redis://127.0.0.1:1/0\n")
    os.chown(tmp_path / ADDRESS_FILE, SOMEBODY, SOMEBODY)
    with pytest.raises(ConfigError, match="belongs to another user"):
        locate(settings_for(THEMES_STATE_DIR=str(tmp_path)))


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777])
def test_a_directory_that_others_may_write_is_refused(mode: int, settings_for: MakeSettings, tmp_path: Path) -> None:
    folder = tmp_path / "var"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=f"chmod go-w {folder}"):
        locate(settings_for(THEMES_STATE_DIR=str(folder)))
    assert stat.S_IMODE(folder.stat().st_mode) == mode, "a directory of others, such as /tmp, is not changed"


def test_a_directory_that_is_made_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private(tmp_path / "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_what_a_run_leaves_is_its_user_s_alone(tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("THEMES_", "OPENAI_"))}
    env["THEMES_STATE_DIR"] = str(tmp_path / "var")
    code = "import os, sys; os.umask(0); from scripts.main import main; sys.argv[1:] = sys.argv[1].split(); main()"
    (tmp_path / "two.csv").write_text("name\nKyoto\nOslo\n")
    command = [sys.executable, "-c", code, f"demo --latency 0 {tmp_path / 'two.csv'}"]
    said = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    found = [tmp_path / "var", *(tmp_path / "var").rglob("*")]
    assert len(found) > 3
    open_to_others = [str(path) for path in found if not path.is_symlink() and path.stat().st_mode & 0o077]
    assert open_to_others == []


@pytest.mark.parametrize("name", ["a b", "日本 é", "a?b", "a#b", "a%20b", "a@b:c", "it's", 'a"b', "a\\b", "x" * 240])
async def test_its_path_may_have_any_characters(name: str, settings_for: MakeSettings, tmp_path: Path) -> None:
    folder = tmp_path / name
    settings = settings_for(THEMES_STATE_DIR=str(folder))
    async with AsyncDatabaseManager.from_settings(settings):
        pass
    assert (folder / "themes.db").is_file()
    assert database_place(settings) == str(folder / "themes.db")
    with LocalRedis(folder, settings.redis.server), StateFile(folder):
        assert locate(settings).startswith("redis://:")
    assert [path.name for path in tmp_path.iterdir()] == [name]
