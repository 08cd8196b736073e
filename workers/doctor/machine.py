"""This machine: Python, clock, file descriptors, memory and CPUs."""

import asyncio
import sys
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from typing import Final

import aiohttp
import psutil

from config.container import cpus_allowed, here
from config.settings import Settings
from tasks.errors import ThemesError
from workers.doctor.check import Check, reached
from workers.llm.endpoints.connections import Connections
from workers.llm.endpoints.registry import endpoints
from workers.observe.format import size
from workers.process import file_descriptors as files

#: Seconds for which the two clocks are watched, and by which they may differ after that.
WATCH_SECONDS: Final = 0.2
STEP_SECONDS: Final = 0.1
#: Seconds by which Redis's clock may differ: leases are a multiple of it.
REDIS_SKEW_SECONDS: Final = 2.0
#: Seconds by which a server's `Date` may differ, which has whole seconds.
DATE_SKEW_SECONDS: Final = 30.0
DATE_SECONDS: Final = 5.0
_MEND_CLOCK: Final = "`timedatectl set-ntp true` (or chrony) here and on that machine"


def python(_settings: Settings) -> Iterator[Check]:
    yield Check("themes", ok=True, found=version("smart-destination-themes"))
    yield Check("python", ok=True, found=sys.version.split()[0])


def clock(settings: Settings) -> Iterator[Check]:
    yield _own()
    yield from _redis(settings)
    yield from asyncio.run(_servers(settings))


def _own() -> Check:
    wall, steady = time.time(), time.monotonic()
    time.sleep(WATCH_SECONDS)
    step = (time.time() - wall) - (time.monotonic() - steady)
    fix = None if abs(step) < STEP_SECONDS else "something sets the clock in steps: " + _MEND_CLOCK
    return Check("clock", ok=fix is None, found=f"steady: {step * 1000:+.1f} ms in {WATCH_SECONDS:g} s", fix=fix)


def _redis(settings: Settings) -> Iterator[Check]:
    try:
        with reached(settings) as client:
            before = time.time()
            seconds, micros = client.time()
            skew = seconds + micros / 1e6 - (before + time.time()) / 2
    except ThemesError:
        return  # the check of Redis says it
    fix = None if abs(skew) < REDIS_SKEW_SECONDS else _MEND_CLOCK
    yield Check("clock of Redis", ok=fix is None, found=f"{skew:+.3f} s from ours", fix=fix)


async def _servers(settings: Settings) -> list[Check]:
    checks = []
    try:
        known = endpoints(settings.llm)
    except ThemesError:
        return []  # the check of the LLM says it
    for endpoint in known:
        connections = Connections(settings.llm, base_url=endpoint.base_url, api_key=endpoint.api_key, max_connections=1)
        try:
            async with asyncio.timeout(DATE_SECONDS), connections.session.get(f"{endpoint.base_url}/models") as answer:
                said = answer.headers.get("Date", "")
                skew = parsedate_to_datetime(said).timestamp() - time.time()
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            continue  # it is away, which the check of the LLM says, or it tells no date
        finally:
            await connections.close()
        fix = None if abs(skew) < DATE_SKEW_SECONDS else _MEND_CLOCK
        checks.append(Check(f"clock of {endpoint.name}", ok=fix is None, found=f"{skew:+.0f} s from ours", fix=fix))
    return checks


def descriptors(settings: Settings) -> Iterator[Check]:
    soft, hard = files.allowed_descriptors()
    roles = (
        ("worker", files.worker_descriptors(settings), True),
        ("consumer", files.consumer_descriptors(settings), True),
        ("dashboard", files.dashboard_descriptors(settings), False),
    )
    needed = max(number for _, number, _ in roles)
    allowed = files.raise_descriptors(needed)
    short = [(role, number, must) for role, number, must in roles if number > allowed]
    found = f"{soft} allowed, up to {hard if hard >= 0 else 'any number'} when asked for; needed: " + ", ".join(
        f"{role} {number}" for role, number, _ in roles
    )
    fix = f"ulimit -n {max(number for _, number, _ in short)}" if short else None
    yield Check("file descriptors", ok=not any(must for *_, must in short), found=found, fix=fix)


def memory(settings: Settings) -> Iterator[Check]:
    limits, performance = here(), settings.performance_optimization
    machine = psutil.virtual_memory()
    total = machine.total if limits.memory_bytes is None else min(machine.total, limits.memory_bytes)
    threshold = performance.memory_pressure_threshold_mb
    whose = "of the container" if total < machine.total else "of the machine"
    found = (
        f"{size(total)} {whose}, {size(machine.available)} free; a worker shrinks at {threshold:,} MiB "
        f"({settings.origin('performance_optimization.memory_pressure_threshold_mb')}), its cache has at most "
        f"{performance.max_memory_cache_mb} MiB; {cpus_allowed(limits)} CPUs"
    )
    half = total // 2**21
    key = "THEMES_PERFORMANCE_OPTIMIZATION__MEMORY_PRESSURE_THRESHOLD_MB"
    fix = None if threshold * 2**20 <= total else f"export {key}={half}"
    yield Check("memory", ok=fix is None, found=found, fix=fix)
