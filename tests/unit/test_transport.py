"""What is taken out of the queue is a call of our task, or dead."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.queue.wire import PROCESS_CHUNK
from tests.support.garbage import kinds, message
from workers.worker.transport import DeadMessageError, accepted


def test_a_message_of_ours_is_accepted_as_it_is() -> None:
    ours = message("20261123-142501-7f3a", "00000000-1.1")
    assert accepted(json.dumps(ours).encode(), PROCESS_CHUNK) == ours


def test_a_reply_to_celery_s_remote_control_is_accepted_where_replies_are() -> None:
    reply = message(headers={"ticket": "1", "clock": 2, "expires": 0})
    item = json.dumps(reply).encode()
    assert accepted(item, None) == reply
    with pytest.raises(DeadMessageError, match="task is None"):
        accepted(item, PROCESS_CHUNK)


def test_every_kind_of_garbage_is_refused_with_a_short_reason() -> None:
    reasons: list[str] = []
    good = json.dumps(message()).encode()
    for seed in range(20):
        for entry in kinds(random.Random(seed)):
            try:
                taken = accepted(entry, PROCESS_CHUNK)
            except DeadMessageError as exc:
                reasons.append(str(exc))
            else:
                assert len(entry) == len(good), "one changed byte may leave it a message"
                assert isinstance(taken["properties"]["delivery_tag"], str)
    assert len(reasons) > 20 * 30
    assert max(map(len, reasons)) < 400


@given(st.binary(max_size=400))
def test_no_bytes_do_more_than_be_refused(entry: bytes) -> None:
    for task in (PROCESS_CHUNK, None):
        with pytest.raises(DeadMessageError):
            accepted(entry, task)
