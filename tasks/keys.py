"""Every Redis key and its lifetime, in one place. Every key starts with `themes:`; nothing ever flushes a database.

What outlives its job all the same, or its message's chunk, the sweeper removes (`workers.results.leftovers`).

| key | type | what | lifetime |
|---|---|---|---|
| themes:jobs | zset | job id by creation time | trimmed with the jobs |
| themes:active | set | ids of jobs that are not finished | - |
| themes:job:ID | hash | registry entry: name, state, counts | KEEP_SECONDS after the end |
| themes:job:ID:chunks | hash | chunk id -> packed Chunk: what is left to do | emptied by the work |
| themes:job:ID:labels | hash | chunk id -> readable name for a message sent again | emptied by the work |
| themes:job:ID:leases | zset | chunk id by the time its lease ends, in ms | emptied by the work |
| themes:job:ID:owners | hash | chunk id -> token of the lease's holder | emptied by the work |
| themes:job:ID:deliveries | hash | chunk id -> times a worker took it | emptied by the work |
| themes:job:ID:finished:CHUNK | set | destinations of a chunk whose result is in the stream | leaves with the chunk |
| themes:job:ID:budget | hash | limit, team, spent, and what each process has reserved, in nano-USD | as the job |
| themes:team:NAME | hash | what a team has spent on each day and in each month, and reserved for each job | - |
| themes:job:ID:batches | hash | tag -> a batch at a provider (`tasks.jobs.batches`) | as the registry entry |
| themes:batch*:… | | what waits for batches, and their lines | `workers.llm.batches.redis_store` |
| themes:job:ID:batches:shelves | hash | endpoint/model -> questions that wait for a batch | emptied by the work |
| themes:job:ID:producer | string | lives while a producer enqueues the job | PRODUCER_SECONDS, renewed |
| themes:job:ID:events | stream | events for watchers | EVENTS_KEEP_SECONDS after the end |
| themes:job:ID:answers | list | the last answers that could not be used (`dashboard.show_answers`) | KEEP_SECONDS |
| themes:job:ID:measurements | hash | process -> what it has measured of the job | KEEP_SECONDS after the last report |
| themes:measurements | zset | job by the time its measurements changed last: not yet in the database | KEEP_SECONDS |
| themes:totals | hash | what all jobs have cost and made, as the database counts it | - |
| themes:totals:since | string | when the database that counts those began to | - |
| themes:metrics | hash | counters and histogram buckets of all processes, each report once | - |
| themes:metrics:PROCESS | string | number of a process's last report of that | an hour |
| themes:series:BUCKET | hash | the same counters, of ten seconds | SERIES_SECONDS |
| themes:results | stream | what the consumer writes to the database | trimmed when acked |
| themes:workers | zset | worker by its last heartbeat (s) | an hour after it |
| themes:queue:dead | list | what was in the queue and is no message of ours, with the reason | at most DEAD_ENTRIES |
| themes:consumers | zset | consumer by its last report (s) | KEEP_SECONDS after it |
| themes:consumer:NAME | hash | a consumer's report: how far behind, how fast | WORKER_SECONDS |
| themes:dashboard | string | the address of a dashboard that runs | DASHBOARD_SECONDS, renewed |
| themes:worker:NAME | hash | a worker process's heartbeat: lanes, in use, pid | WORKER_SECONDS |
| themes:cache:DIGEST | string | one cached completion | cache_ttl_days |
| themes:cache:profile:DIGEST | string | a profile that is made of such completions | as long as the first of them |
| themes:evidence:DIGEST | string | what the web says of a destination | cache_ttl_days; nothing: an hour |
| themes:stats:cache | hash | what the caches of all processes have counted | until `themes cache clear` |
| themes:stats:cache:PROCESS | string | number of a process's last report of that | an hour |
| themes:dead:PROCESS | string | a worker process that is known to be dead | DEAD_SECONDS |
| themes:flight:DIGEST | string | token of the process that is asking a prompt | its lease, renewed |
| themes:flight:DIGEST:waiters | string | another caller waits for that | a minute, or a lease |
| themes:flight:DIGEST:outcome | string | what waiting processes are told, where the cache will not | seconds |
| themes:flights | channel | digest of each prompt with waiting callers, at its end | - |
| themes:limit:DIGEST | hash | an endpoint's limits: when they are used up (r, t; us) | LIMIT_SECONDS beyond that |
| themes:limit:DIGEST:users | zset | processes that share them, by their last reservation (us) | USER_SECONDS |
| themes:limit:DIGEST:learnt | hash | what refusals have taught of an endpoint's rate | 10 minutes of rest |
| themes:cooldown:DIGEST | hash | an endpoint to be left alone: its reason, the next probe (ms) | what it asked for |
| themes:cooldowns | channel | "DIGEST milliseconds wait" of each new cool-down; 0: it is over | - |
| themes:tuned | hash | settings changed on running workers: worker or *, key -> text | until `themes tune --reset` |
| themes:webhooks | hash | notice id -> what is to be posted to `webhook.url` | until it is taken, at most 31 days |
| themes:webhooks:due | zset | notice id by the time of its next try (ms) | with it |
| themes:control | channel | id of each job that was cancelled or paused; `cache`: it was cleared | - |
| themes:themes*, themes:unacked*, themes:_kombu* | | Celery's queue, kombu's books (global_keyprefix) | kombu's |
"""

from collections.abc import Callable
from typing import Final

PREFIX: Final = "themes:"
#: Name of the Celery queue; in Redis it stands behind the prefix.
QUEUE: Final = "themes"
#: Where kombu keeps messages that were delivered and not acknowledged, and by which time.
UNACKED: Final = "themes:unacked"
UNACKED_INDEX: Final = "themes:unacked_index"
#: What kombu puts between a queue's name and its priority.
PRIORITY_SEPARATOR: Final = ":"
PRIORITIES: Final = tuple(range(10))

JOBS: Final = "themes:jobs"
ACTIVE: Final = "themes:active"
WORKERS: Final = "themes:workers"
RESULTS: Final = "themes:results"
CONSUMERS: Final = "themes:consumers"
#: The address of a dashboard, and seconds without a sign of life after which it counts as gone.
DASHBOARD: Final = "themes:dashboard"
DASHBOARD_SECONDS: Final = 30
QUEUE_DEAD: Final = "themes:queue:dead"
#: The consumer group of the results stream.
GROUP: Final = "consumer"
DEAD_ENTRIES: Final = 10_000

#: Fields of a job's entry that a pause has written, and that leave with it.
PAUSED: Final = ("paused", "paused_at", "paused_message", "paused_until")

#: Seconds that a finished job stays in Redis: a week, as the cache.
KEEP_SECONDS: Final = 7 * 86_400
#: Seconds that a finished job's events stay for late watchers.
EVENTS_KEEP_SECONDS: Final = 86_400
#: Seconds that a dead process is remembered: longer than any lease on a prompt.
DEAD_SECONDS: Final = 3_600
#: Seconds without a sign of life after which a job's producer counts as dead.
PRODUCER_SECONDS: Final = 30
#: Seconds after which a worker without a heartbeat counts as gone.
WORKER_SECONDS: Final = 15

#: Seconds that an endpoint's limits are remembered beyond the last reservation.
LIMIT_SECONDS: Final = 60
#: Seconds after which a process that reserves nothing no longer counts as a user of an endpoint's limits.
USER_SECONDS: Final = 60
CACHE_STATISTICS: Final = "themes:stats:cache"
TOTALS: Final = "themes:totals"
MEASUREMENTS_DUE: Final = "themes:measurements"
TOTALS_SINCE: Final = "themes:totals:since"
METRICS: Final = "themes:metrics"
#: Seconds of one point of the series of counters, and how long it is kept: the last hour and a bit.
SERIES_STEP_SECONDS: Final = 10
SERIES_SECONDS: Final = 4_000
COOLDOWNS: Final = "themes:cooldowns"
#: Settings that were changed on running workers. No TTL: a shared limit must hold for workers to come.
TUNED: Final = "themes:tuned"
CONTROL: Final = "themes:control"
#: Said there when the cache was cleared.
CACHE_CLEARED: Final = "cache"
WEBHOOKS: Final = "themes:webhooks"
WEBHOOKS_DUE: Final = "themes:webhooks:due"
FLIGHTS: Final = "themes:flights"
#: Who keeps the batches, which jobs have any, how many questions have no end, and chunks whose message is to be sent.
BATCH_KEEPER: Final = "themes:batches:keeper"
BATCH_JOBS: Final = "themes:batches:jobs"
BATCHES_OPEN: Final = "themes:batches:open"
BATCHES_WOKEN: Final = "themes:batches:woken"


def _keys(before: str, after: str = "") -> Callable[[str], str]:
    """Makes the key of one id."""

    def key(id_: str) -> str:
        return f"{before}{id_}{after}"

    return key


job = _keys("themes:job:")
chunks = _keys("themes:job:", ":chunks")
labels = _keys("themes:job:", ":labels")
leases = _keys("themes:job:", ":leases")
owners = _keys("themes:job:", ":owners")
deliveries = _keys("themes:job:", ":deliveries")
producer = _keys("themes:job:", ":producer")
budget = _keys("themes:job:", ":budget")
team = _keys("themes:team:")
measurements = _keys("themes:job:", ":measurements")
batches = _keys("themes:job:", ":batches")
batch_shelves = _keys("themes:job:", ":batches:shelves")
batch_form = _keys("themes:batch:form:")
batch_question = _keys("themes:batch:question:")
batch_answer = _keys("themes:batch:answer:")
events = _keys("themes:job:", ":events")
answers = _keys("themes:job:", ":answers")
worker = _keys("themes:worker:")
consumer = _keys("themes:consumer:")
cache = _keys("themes:cache:")
#: What the digest of a cached profile stands behind.
COMPOSITE: Final = "profile:"
evidence = _keys("themes:evidence:")
dead = _keys("themes:dead:")
limit = _keys("themes:limit:")
limit_users = _keys("themes:limit:", ":users")
learnt = _keys("themes:limit:", ":learnt")
cooldown = _keys("themes:cooldown:")
metrics_reports = _keys(f"{METRICS}:")
cache_reports = _keys(f"{CACHE_STATISTICS}:")


def finished(job_id: str, chunk_id: str) -> str:
    return f"themes:job:{job_id}:finished:{chunk_id}"


def parked(job_id: str, chunk_id: str) -> str:
    return f"themes:job:{job_id}:parked:{chunk_id}"


def batch_waiting(job_id: str, shelf: str) -> str:
    return f"themes:job:{job_id}:batches:waiting:{shelf}"


def batch_lines(job_id: str, tag: str) -> str:
    return f"themes:job:{job_id}:batches:lines:{tag}"


def batch_bills(job_id: str, tag: str) -> str:
    return f"themes:job:{job_id}:batches:bills:{tag}"


def batch_partly(job_id: str, tag: str) -> str:
    return f"themes:job:{job_id}:batches:partly:{tag}"


def series(at: float) -> str:
    """The counters of the ten seconds around a time (seconds since 1970)."""
    return f"themes:series:{int(at // SERIES_STEP_SECONDS) * SERIES_STEP_SECONDS}"


def flight(flight_digest: str, cache_digest: str) -> tuple[str, str, str, str]:
    """Keys of one prompt: its cached answer, the caller's lease, whether others wait, what these are told."""
    lease = f"themes:flight:{flight_digest}"
    return cache(cache_digest), lease, f"{lease}:waiters", f"{lease}:outcome"


def queue_keys() -> list[str]:
    """The Redis lists that make up the Celery queue, most urgent first."""
    return [f"{PREFIX}{QUEUE}{PRIORITY_SEPARATOR}{step}" if step else f"{PREFIX}{QUEUE}" for step in PRIORITIES]
