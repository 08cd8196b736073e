"""`themes doctor`: what is wrong with the set-up, each with its fix."""

import json
from dataclasses import asdict
from typing import Final

import click
from rich.console import Console
from rich.text import Text

from config.container import CONTAINER
from config.settings import Settings
from scripts.main import settings_from
from tasks.errors import ThemesError
from tasks.texts import count
from workers.doctor.check import Check, Checks, examine

#: Checks that ask Redis, or are of no interest without.
NEED_REDIS: Final = frozenset({"redis", "llm limits", "workers", "consumer", "queue", "jobs", "dashboard"})


@click.command(epilog="Example: themes doctor --json")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(*, as_json: bool) -> int:
    """Check settings, Redis, LLM, database, machine and workers; exit 1 when anything fails."""
    checks = diagnose()
    ok = all(check.ok for check in checks)
    if as_json:
        print(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}, ensure_ascii=False))
    else:
        _show(checks)
    return 0 if ok else 1


def diagnose() -> list[Check]:
    """Every check, in the order in which a failure would be met. Without readable settings there is only one."""
    try:
        settings = settings_from()
    except ThemesError as exc:
        fix = "mend what it names (`themes config check` names all of it)"
        return [Check("settings", ok=False, found=str(exc), fix=fix)]
    subjects = _subjects()
    if settings.redis.enabled:
        return [_settings(settings), *examine(subjects, settings)]
    without = {name: checks for name, checks in subjects.items() if name not in NEED_REDIS}
    return [_settings(settings), _no_redis(settings), *examine(without, settings)]


def _subjects() -> dict[str, Checks]:
    # Late: without readable settings nothing of it is needed.
    from workers.doctor import broker, dashboard, database, fleet, llm, machine

    return {
        "python": machine.python,
        "clock": machine.clock,
        "file descriptors": machine.descriptors,
        "memory": machine.memory,
        "redis": broker.checks,
        "llm": llm.checks,
        "llm prices": llm.prices,
        "llm limits": llm.limits,
        "database": database.checks,
        "workers": fleet.workers,
        "consumer": fleet.consumer,
        "queue": fleet.queue,
        "jobs": fleet.leftover_jobs,
        "dashboard": dashboard.checks,
    }


def _settings(settings: Settings) -> Check:
    bounded = [key.rpartition(".")[2] for key, origin in settings.origins.items() if origin == CONTAINER]
    found = f"{len(settings.origins) - len(bounded)} set by you"
    if bounded:
        found += f", bounded by the container: {', '.join(bounded)}"
    return Check("settings", ok=True, found=found, fix="; ".join(settings.remarks) or None)


def _no_redis(settings: Settings) -> Check:
    found = f"off by redis.enabled ({settings.origin('redis.enabled')}); `themes run FILE` does a job without"
    return Check("redis", ok=True, found=found)


def _show(checks: list[Check]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for check in checks:
        mark = Text("FAIL", "red") if not check.ok else Text("note", "yellow") if check.fix else Text("ok  ", "green")
        console.print(mark, Text(f"{check.name}: {check.found}"))
        if check.fix:
            console.print("    ", Text(f"{'advice' if check.ok else 'fix'}: {check.fix}"))
    failed = sum(not check.ok for check in checks)
    notes = sum(check.ok and bool(check.fix) for check in checks)
    parts = [f"{len(checks) - failed - notes} ok"]
    parts += [f"{failed} failed"] if failed else []
    parts += [count(notes, "note")] if notes else []
    console.print(Text(f"{count(len(checks), 'check')}: {', '.join(parts)}"))
