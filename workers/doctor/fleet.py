"""Workers, the consumer, the queue, and jobs that no worker goes on with."""

from collections.abc import Iterator
from typing import Final

from config.settings import Settings
from config.tuning import TUNED
from tasks import keys, tuned
from tasks import worker_reports as fleet
from tasks.connection import connect
from tasks.jobs import registry as jobs
from tasks.queue.retry import has_nothing_left
from tasks.texts import count, duration
from workers.diagnosis.system import queue_lengths
from workers.doctor.check import Check, reached

SHOWN_JOBS: Final = 5
MAX_JOBS: Final = 200


def workers(settings: Settings) -> Iterator[Check]:
    with reached(settings) as client:
        found = fleet.workers(client)
        changes = tuned.kept(client)
    fix = None if found else "`themes worker` (and `themes consumer`) in another terminal, or `themes up`"
    said = ", ".join(_worker(name, report) for name, report in found.items())
    yield Check("workers", ok=bool(found), found=said or "none is running", fix=fix)
    if changes:
        said = ", ".join(f"{key}={text} ({who})" for who, key, text in changes)
        yield Check("tuned", ok=True, found=f"{said}, until `themes tune --reset`")
    pressed = [name for name, report in found.items() if report.memory_pressure != "none"]
    if pressed:
        threshold = found[pressed[0]].memory_threshold_mb
        fix = f"themes tune memory_pressure_threshold_mb={threshold * 2} (or fewer: worker_pool_size)"
        said = ", ".join(f"{name} ({found[name].memory_pressure})" for name in pressed)
        yield Check("worker memory", ok=True, found=f"under pressure: {said}", fix=fix)
    off = {name: report.journal_off for name, report in found.items() if report.journal_off}
    if off:
        said = "; ".join(f"{name}: {reason}" for name, reason in off.items())
        fix = "make room in the state directory or let the workers write there; they go on by themselves"
        yield Check("call journal", ok=False, found=f"call journal off: a kill loses calls ({said})", fix=fix)


def _worker(name: str, report: fleet.WorkerReport) -> str:
    text = f"{name} ({count(report.lanes, 'lane')}, {report.busy_share:.0%} busy so far"
    if report.memory_mb is not None:
        text += f", {report.memory_mb} of {report.memory_threshold_mb} MiB"
    if report.restarts:
        again = count(report.restarts, "time")
        text += f", started again {again}, {report.wedged} of them because it consumed nothing"
    for key, one in report.settings.items():
        if one.origin == TUNED:
            text += f", {key.rpartition('.')[2]}={one.value} (tuned)"
    if report.cache_outages:
        text += f", Redis was away {count(report.cache_outages, 'time')} (total {duration(report.cache_away_seconds)})"
        text += ", and the cache goes on alone" if report.cache == "away" else ""
    if report.waiting_for:
        text += f", waiting: {report.waiting_for.format()}"
    return text + ")"


def consumer(settings: Settings) -> Iterator[Check]:
    with reached(settings) as client:
        found = fleet.consumers(client)
        waiting = int(client.xlen(keys.RESULTS))
    if not found:
        fix = "`themes consumer` in another terminal, or `themes up`"
        yield Check("consumer", ok=False, found=f"none is running; {count(waiting, 'entry')} not stored yet", fix=fix)
        return
    said = ", ".join(
        f"{name} ({count(one.lag, 'entry')} behind, {one.entries_per_second:.0f}/s lately, "
        f"{duration(one.ms_per_batch / 1000)} a batch)"
        for name, one in found.items()
    )
    dead = sum(one.rejected for one in found.values())
    mend = f"{count(dead, 'entry')} could not be stored; why stands in the table dead_letters" if dead else None
    yield Check("consumer", ok=not dead, found=said, fix=mend)


def queue(settings: Settings) -> Iterator[Check]:
    with reached(settings) as client:
        url, seconds = settings.celery.broker_url, settings.redis.socket_timeout_seconds
        broker = connect(url, socket_timeout_seconds=seconds) if url else client
        (waiting, dead), lanes = queue_lengths(broker), fleet.live_lanes(client)
    fix = None
    if dead:
        fix = f"another program writes into it: `redis-cli LRANGE {keys.QUEUE_DEAD} 0 9` shows what, and why"
    elif waiting and not lanes:
        fix = "`themes worker`: no worker takes them"
    found = f"{count(waiting, 'message')} waiting, {count(lanes, 'lane')}, {count(dead, 'entry')} set aside"
    yield Check("queue", ok=not (waiting and not lanes), found=found, fix=fix)


def leftover_jobs(settings: Settings) -> Iterator[Check]:
    with reached(settings) as client:
        found = list(jobs.list_jobs(client, limit=MAX_JOBS))
        stalled = [status for status in found if status.state == "stalled"]
        lacking = [status for status in stalled if not status.paused and has_nothing_left(client, status.job_id)]
    for one in [status for status in found if status.unreadable][:SHOWN_JOBS]:
        fix = f"put {keys.job(one.job_id)} in Redis right, or delete it: the results are in the database"
        yield Check("jobs", ok=False, found=f"{one.job_id} cannot be read: {one.unreadable}", fix=fix)
    for one in lacking[:SHOWN_JOBS]:
        said = f"{one.job_id}: nothing is left to do, and rows are missing: {one.done + one.failed} of {one.total}"
        yield Check("jobs", ok=False, found=said, fix=f"`themes retry {one.job_id}` asks for them again")
    stalled = [status for status in stalled if status not in lacking]
    if not stalled:
        if not lacking:
            yield Check("jobs", ok=True, found="none is left over")
        return
    shown = ", ".join(f"{one.job_id} ({one.done + one.failed} of {one.total})" for one in stalled[:SHOWN_JOBS])
    more = f" and {len(stalled) - SHOWN_JOBS} more" if len(stalled) > SHOWN_JOBS else ""
    verb = "resume" if stalled[0].paused else "retry"
    fix = f"`themes {verb} {stalled[0].job_id}` goes on with it, `themes cancel {stalled[0].job_id}` ends it"
    yield Check("jobs", ok=True, found=f"left over: {shown}{more}", fix=fix)
