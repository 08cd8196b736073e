"""What a job bought in batches, as a part of its measurements: a report has it when Redis has forgotten the job."""

import time
from typing import Any, Final

import msgspec

from tasks.jobs.batches import read, seconds_under_way, summed
from workers.observe.measurements import JobMeasurements, ProcessMeasurements

#: Stands for a process in the parts of a job, and before its sums.
PROCESS: Final = "batches"


class BatchUse(msgspec.Struct, frozen=True):
    """Batches of a job that a provider got, their requests, and how long it had at least one of them."""

    sent: float
    requests: float
    answered: float
    #: Requests that had no answer when their batch expired.
    expired: float
    seconds: float
    #: What they saved against standard, in US dollars; None where a price is not known.
    saved_usd: float | None = None
    endpoints: str = ""


def batch_parts(fields: Any, *, now: float | None = None) -> list[ProcessMeasurements]:
    """One part, out of Redis's reply for the hash of a job's batches; none where no batch was sent."""
    now = time.time() if now is None else now
    sent = [one for one in read(fields) if one.is_sent]
    known = summed(sent, 0)
    if known is None:
        return []
    sums = {
        "sent": len(sent), "requests": known.submitted, "answered": known.answered, "expired": known.expired_requests,
        "seconds": seconds_under_way(sent, now), "saved_usd": known.saved_usd,
    }  # fmt: skip
    part = ProcessMeasurements(
        process=PROCESS, role="provider", name=PROCESS, host="",
        since=min(one.asked_at for one in sent), until=max(one.ended_at or now for one in sent),
        sums={f"{PROCESS}.{name}": amount for name, amount in sums.items() if amount is not None},
        facts={"endpoints": ", ".join(sorted({one.endpoint for one in sent}))},
    )  # fmt: skip
    return [part]


def use_of(picture: JobMeasurements) -> BatchUse | None:
    """What the parts say of batches; None where the job had none."""
    part = next((one for one in picture.parts if one.process == PROCESS), None)
    if part is None:
        return None
    sums = {name.removeprefix(f"{PROCESS}."): amount for name, amount in part.sums.items()}
    return BatchUse(**sums, endpoints=str(part.facts["endpoints"]))
