"""What lines of batches have cost: one bill a line, one entry of the books a payer."""

import msgspec

from tasks.jobs.batches import BOOKED_BY, Batch
from tasks.messages import Spent, Usage
from workers.observe.call_journal import Bill

_encoder = msgspec.json.Encoder()


def encoded(bill: Bill) -> bytes:
    return _encoder.encode(msgspec.structs.astuple(bill))


def spent_of(batch: Batch, payer: str, bills: bytes, *, at: float) -> Spent:
    """The entry of all lines of a batch that a payer has, `DESTINATION ATTEMPT`; `at` in seconds since 1970."""
    destination_id, _, attempt = payer.rpartition(" ")
    usage = Usage()
    for line in bills.splitlines():
        bill = Bill(*msgspec.json.decode(line))
        usage += Usage(
            llm_calls=1,
            prompt_tokens=bill.prompt_tokens,
            completion_tokens=bill.completion_tokens,
            estimated_calls=bill.estimated,
            cost_usd=bill.cost_usd,
            cached_tokens=bill.cached_tokens,
            cache_write_tokens=bill.cache_write_tokens,
            reasoning_tokens=bill.reasoning_tokens,
            listed_usd=bill.listed_usd,
            tier_saved_usd=bill.tier_saved_usd,
        )
    return Spent(
        job_id=batch.job_id,
        destination_id=destination_id,
        attempt=int(attempt),
        usage=usage,
        worker=f"{BOOKED_BY}{batch.tag}",
        at=at,
        elapsed_ms=0.0,
    )
