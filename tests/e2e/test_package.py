"""The wheel and the sdist, and `themes` as it is installed from them, far from any checkout."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from docs._generate.licences import locked
from tests.e2e.conftest import DEADLINE, Engine
from tests.unit.test_distribution import PROJECT, ROOT

PACKAGES = {"config", "tasks", "workers", "scripts"}


def _ran(*command: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    ran = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"
    return ran.stdout


def _built(kind: str, source: Path, into: Path) -> Path:
    _ran(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", into, cwd=source)
    (made,) = (path for path in into.iterdir() if path.suffix == {"wheel": ".whl", "sdist": ".gz"}[kind])
    return made


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of this checkout, and the wheel that is built from what the sdist has."""
    for missing in [tool for tool in ("hatchling", "pip") if importlib.util.find_spec(tool) is None]:
        if os.environ.get("CI"):
            pytest.fail(f"{missing} is missing: scripts/setup --dev installs it")
        pytest.skip(f"needs {missing}")
    folder = tmp_path_factory.mktemp("dist")
    sdist = _built("sdist", ROOT, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return sdist, _built("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)


@pytest.fixture(scope="module")
def installed(packages: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `python` and `themes` in an environment that has the wheel, requirements.lock, and nothing else."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    _link_locked(Path(_ran(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()))
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    _ran(*pip, "install", "--no-index", "--no-deps", packages[1], cwd=folder)
    _ran(*pip, "check", cwd=folder)
    return python.parent


def _link_locked(site: Path) -> None:
    """Show what requirements.lock names, of what is installed here: no registry is asked."""
    for name, *_ in locked("requirements.lock"):
        with suppress(PackageNotFoundError):  # of another system or Python
            found = distribution(name)
            for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
                if not (site / top).exists():
                    (site / top).symlink_to(str(found.locate_file(top)))


def _in_git() -> set[str]:
    """What git tracks or would add; a deleted file is neither."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a git checkout")
    listed = _ran("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return {path for path in listed.split("\0") if path and (ROOT / path).exists()}


def test_the_sdist_has_every_file_of_the_repository(packages: tuple[Path, Path]) -> None:
    with tarfile.open(packages[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names - {"PKG-INFO"} == _in_git()


def test_the_wheel_has_every_file_of_its_packages_of_whatever_kind(packages: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(packages[1]).namelist())
    ours = {name for name in names if name.partition("/")[0] in PACKAGES}
    assert ours == {path for path in _in_git() if path.partition("/")[0] in PACKAGES}
    kinds = {Path(name).suffix for name in ours}
    assert kinds > {".lua", ".md", ".html", ".css", ".js", ".yaml", ".csv", ".b64", ".typed"}
    # Beside the packages it puts nothing but the manual page into the environment.
    distribution = f"smart_destination_themes-{PROJECT['version']}"
    beside = {name for name in names - ours if not name.startswith(f"{distribution}.dist-info/")}
    assert beside == {f"{distribution}.data/data/share/man/man1/themes.1"}


def test_what_the_image_copies_makes_the_same_wheel(packages: tuple[Path, Path], tmp_path: Path) -> None:
    for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        for source in line.split()[:-1]:
            (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / source, dirs_exist_ok=True)
            else:
                shutil.copy(ROOT / source, tmp_path / source)
    (tmp_path / "dist").mkdir()
    made, released = (zipfile.ZipFile(one) for one in (_built("wheel", tmp_path, tmp_path / "dist"), packages[1]))
    assert {name for name in made.namelist() if "__pycache__" not in name} == set(released.namelist())


@contextmanager
def _sandbox(themes: Path, engine: Engine, folder: Path) -> Iterator[None]:
    command = [themes, "sandbox-llm", "--port", "0", "--latency", "0"]
    with subprocess.Popen(
        command, cwd=folder, env=engine.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        engine.env["OPENAI_BASE_URL"] = process.stdout.readline().strip()
        try:
            yield
        finally:
            process.terminate()


def test_the_installed_wheel_does_a_job_and_makes_its_report(installed: Path, engine: Engine, tmp_path: Path) -> None:
    engine.env.pop("PYTHONPATH", None)
    # Without a state directory of its own it is `var` here, and nothing of a checkout.
    del engine.env["THEMES_STATE_DIR"]
    engine.env |= {"OPENAI_API_KEY": "none", "THEMES_MODEL": "sandbox"}
    themes = installed / "themes"

    def run(*arguments: str) -> str:
        return _ran(themes, *arguments, cwd=tmp_path, env=engine.env)

    assert run("--version") == f"themes, version {PROJECT['version']}\n"
    assert "sandbox-llm" in run("--help")
    assert (installed.parent / "share" / "man" / "man1" / "themes.1").is_file()
    where = _ran(installed / "python", "-c", "import workers; print(workers.__file__)", cwd=tmp_path, env=engine.env)
    assert Path(where).is_relative_to(installed.parent)
    (tmp_path / "places.csv").write_text("name,country\nKyoto,Japan\nPorto,Portugal\n")
    with _sandbox(themes, engine, tmp_path):
        job = run("run", "places.csv").strip()
    assert len(run("results", job, "--format", "jsonl").splitlines()) == 2
    run("report", job, "-o", "report.html")
    assert "<style" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "var" / "themes.db").exists()
