"""A private PostgreSQL server for tests: a unix socket in a folder of its own, no network, gone at the end."""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


def binaries() -> Path | None:
    """The folder of initdb and postgres; None where there is none. Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: int(path.parent.name))


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run a server in `binaries()`; yields the folder of its socket."""
    found = binaries()
    assert found
    # The path of a socket is short by law (107 bytes).
    with tempfile.TemporaryDirectory(prefix="pg-") as place:
        data = Path(place, "data")
        # PostgreSQL does not run as root.
        account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        if account:
            os.chown(place, account.pw_uid, account.pw_gid)
        who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        log = folder / "postgresql.log"
        with log.open("wb") as words:
            subprocess.run(
                [found / "initdb", "-D", data, "-A", "trust", "-U", "themes", "-E", "UTF8", "--no-sync"],
                check=True, stdout=words, stderr=words, cwd=place, **who,
            )  # fmt: skip
            settings = {
                "listen_addresses": "", "unix_socket_directories": place, "max_connections": 50,
                # What is gone at the end needs no disk.
                "fsync": "off", "full_page_writes": "off", "synchronous_commit": "off",
            }  # fmt: skip
            options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
            running = subprocess.Popen(
                [found / "postgres", "-D", data, *options], stdout=words, stderr=words, cwd=place, **who
            )
            try:
                ready = [found / "pg_isready", "-q", "-h", place, "-U", "themes", "-t", "1"]
                for _ in range(300):
                    if subprocess.run(ready, check=False).returncode == 0:
                        break
                    assert running.poll() is None, log.read_text()
                yield place
            finally:
                # At once, and without writing anything down.
                running.send_signal(signal.SIGQUIT)
                running.wait(180)


async def created(folder: str, template: str = "template1") -> str:
    """Make a database of a server that is a copy of another one; returns its name."""
    import asyncpg

    name = f"t{secrets.token_hex(6)}"
    connection = await asyncpg.connect(host=folder, user="themes", database="postgres")
    try:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    finally:
        await connection.close()
    return name


def url(folder: str, name: str) -> str:
    """The address of a database."""
    return f"postgresql+asyncpg://themes@/{name}?host={folder}"
