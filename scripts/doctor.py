"""`themes doctor`: what is wrong with the set-up, each with its fix."""

import asyncio
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

import click
from rich.console import Console
from rich.text import Text

from config.settings import Settings, notices
from config.tuning import TUNED
from scripts.local_redis import find_binary
from scripts.main import settings_from
from tasks import fleet, keys
from tasks.connection import check_server, connect, locate, masked
from tasks.errors import ThemesError

#: Free bytes below which the database's disk is called full.
FREE_BYTES: Final = 200 * 1024 * 1024
#: File descriptors that a process needs beside its connections.
SPARE_DESCRIPTORS: Final = 100


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: whether it is fine, what was found, and what to do when it is not."""

    name: str
    ok: bool
    found: str
    fix: str | None = None


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(*, as_json: bool) -> int:
    """Check settings, Redis, LLM, database and dashboard; exit 1 when anything fails."""
    checks = examine()
    if as_json:
        ok = all(check.ok for check in checks)
        print(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}))
    else:
        console = Console()
        for check in checks:
            mark = Text("ok  ", "green") if check.ok else Text("FAIL", "red")
            console.print(mark, f"{check.name}: {check.found}", highlight=False, soft_wrap=True)
            if check.fix:
                console.print("    ", f"fix: {check.fix}", highlight=False, soft_wrap=True)
    return 0 if all(check.ok for check in checks) else 1


def examine() -> list[Check]:
    """Every check, in the order in which a failure would be met. Without readable settings there is only one."""
    try:
        settings = settings_from()
    except ThemesError as exc:
        return [Check("settings", ok=False, found=str(exc), fix="mend that line, or unset THEMES_CONFIG")]
    looks: list[tuple[str, Callable[[Settings], Check]]] = [
        ("python", _python),
        ("redis", _redis),
        ("workers", _workers),
        ("consumer", _consumer),
        ("llm", _llm),
        ("database", _database),
        ("file descriptors", _descriptors),
        ("dashboard", _dashboard),
    ]
    return [_settings(settings), *(_look(*look, settings) for look in looks)]


def _look(name: str, look: Callable[[Settings], Check], settings: Settings) -> Check:
    """One check; an error of ours is its finding, its last sentence the fix."""
    try:
        return look(settings)
    except ThemesError as exc:
        found, _, fix = str(exc).rpartition(": ")
        return Check(name, ok=False, found=found or fix, fix=fix)


def _settings(settings: Settings) -> Check:
    notes = notices(settings)
    return Check("settings", ok=True, found=f"{len(settings.origins)} set by you", fix="; ".join(notes) or None)


def _python(settings: Settings) -> Check:
    del settings
    return Check("python", ok=True, found=sys.version.split()[0])


def _redis(settings: Settings) -> Check:
    url = locate(settings)
    try:
        with connect(url, socket_timeout_seconds=settings.redis.socket_timeout_seconds) as client:
            began = time.perf_counter()
            facts = check_server(client)
            took = (time.perf_counter() - began) * 1000
    except ThemesError as exc:
        if settings.is_set("performance_optimization.redis_url"):
            raise
        binary = find_binary(settings.redis.server)
        return Check("redis", ok=False, found=f"{exc}", fix=f"`themes up` starts a private one ({binary.name})")
    kept = "append-only file on" if facts.is_persistent else "no append-only file: a crash of Redis loses queued work"
    found = f"{masked(url)}, version {facts.version}, {facts.policy}, {kept}, {took:.0f} ms"
    return Check("redis", ok=True, found=found, fix=None if facts.is_persistent else "CONFIG SET appendonly yes")


def _workers(settings: Settings) -> Check:
    url = locate(settings)
    with connect(url, socket_timeout_seconds=settings.redis.socket_timeout_seconds) as client:
        check_server(client)
        found = fleet.workers(client)
    fix = None if found else "`themes worker` (and `themes consumer`) in another terminal, or `themes up`"
    said = ", ".join(_worker(name, report) for name, report in sorted(found.items()))
    return Check("workers", ok=bool(found), found=said or "none is running", fix=fix)


def _consumer(settings: Settings) -> Check:
    """Who writes results, how far behind, and whether anything was set aside."""
    url = locate(settings)
    with connect(url, socket_timeout_seconds=settings.redis.socket_timeout_seconds) as client:
        check_server(client)
        found = fleet.consumers(client)
        waiting = int(client.xlen(keys.RESULTS))
    if not found:
        fix = "`themes consumer` in another terminal, or `themes up`"
        return Check("consumer", ok=False, found=f"none is running; {waiting} entries wait to be stored", fix=fix)
    said = ", ".join(
        f"{name} ({report.get('lag')} entries behind, {float(report.get('entries_per_second') or 0):.0f}/s lately, "
        f"{float(report.get('ms_per_batch') or 0):.1f} ms a batch)"
        for name, report in sorted(found.items())
    )
    dead = sum(int(report.get("rejected") or 0) for report in found.values())
    mend = f"{dead} entries could not be stored; why stands in the table dead_letters" if dead else None
    return Check("consumer", ok=not dead, found=said, fix=mend)


def _worker(name: str, report: dict[str, str]) -> str:
    """A worker's name and lanes, and how often it had to be started again, where it had to."""
    again = int(report.get("restarts") or 0)
    text = f"{name} ({report.get('lanes')} lanes, {float(report.get('busy_share') or 0):.0%} busy so far"
    if again:
        text += f", started again {again} times, {report.get('wedged')} of them because it consumed nothing"
    settings = json.loads(report.get("settings") or "{}")
    for key, one in settings.items():
        if one["origin"] == TUNED:
            text += f", {key.rpartition('.')[2]}={one['value']} (tuned)"
    if report.get("waiting_for"):
        text += f", waiting for the LLM: {report['waiting_for']}"
    return text + ")"


def _llm(settings: Settings) -> Check:
    """One real question with the smallest schema: endpoint, key, model and response format in one."""
    # Late: the other checks are quick to import.
    from workers.llm.answers import AnswerSchema
    from workers.llm.client import ChatClient, Spend
    from workers.llm.connections import Connections
    from workers.llm.endpoints import Endpoint, endpoints, model_for
    from workers.llm.prompt import Prompt

    schema = {
        "type": "object",
        "properties": {"ready": {"type": "boolean"}},
        "required": ["ready"],
        "additionalProperties": False,
    }
    prompt = Prompt(
        stage="doctor",
        version="1",
        system="You answer with JSON.",
        instructions="Say that you are ready.",
        data="",
        identity="",
        schema=AnswerSchema("doctor", schema),
        max_tokens=200,
    )

    async def ask(endpoint: Endpoint) -> str:
        model = endpoint.name_of(next(iter(endpoint.models), None) or model_for(settings.llm, "discover"))
        connections = Connections(settings.llm, base_url=endpoint.base_url, api_key=endpoint.api_key, max_connections=1)
        try:
            client = ChatClient(settings.llm, base_url=endpoint.base_url, model=model, connections=connections)
            began = time.perf_counter()
            answer = await client.complete(prompt, max_tokens=200, spend=Spend())
            took = (time.perf_counter() - began) * 1000
            prompt.schema.read(answer.text)
            return f"{client!r} answered as {answer.model!r} in {took:.0f} ms"
        finally:
            await connections.close()

    found = [asyncio.run(ask(endpoint)) for endpoint in endpoints(settings.llm)]
    return Check("llm", ok=True, found="; ".join(found))


def _database(settings: Settings) -> Check:
    if not settings.database_url.startswith("sqlite"):
        return Check("database", ok=True, found=masked(settings.database_url))
    folder = _existing(settings.database_url.rpartition("///")[2])
    if not os.access(folder, os.W_OK):
        return Check("database", ok=False, found=f"{folder} cannot be written", fix="chmod it, or set THEMES_STATE_DIR")
    free = shutil.disk_usage(folder).free
    fix = None if free > FREE_BYTES else "make room, or set THEMES_STATE_DIR to another disk"
    return Check("database", ok=fix is None, found=f"{settings.database_url}, {free // 2**20} MiB free", fix=fix)


def _existing(path: str) -> str:
    """The nearest folder above a file that exists."""
    folder = os.path.dirname(path)  # noqa: PTH120  # plain text of a URL
    while folder and not os.path.isdir(folder):  # noqa: PTH112
        folder = os.path.dirname(folder)  # noqa: PTH120
    return folder or "."


def _descriptors(settings: Settings) -> Check:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = settings.performance_optimization
    needed = limits.llm_connection_pool_size + limits.database_connection_pool_size + SPARE_DESCRIPTORS
    fix = None if soft >= needed else f"ulimit -n {needed}"
    return Check("file descriptors", ok=fix is None, found=f"{soft} allowed, {needed} needed", fix=fix)


def _dashboard(settings: Settings) -> Check:
    place = f"http://{settings.dashboard.host}:{settings.dashboard.port}"
    with socket.socket() as probe:
        probe.settimeout(1.0)
        running = probe.connect_ex((settings.dashboard.host, settings.dashboard.port)) == 0
    return Check("dashboard", ok=True, found=f"{place} {'answers' if running else 'is free'}")
