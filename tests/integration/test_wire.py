"""A chunk's message beside the one that Celery and kombu send for it."""

import json
from collections.abc import Callable

import pytest
from redis import Redis

from config.settings import Settings
from tasks import keys
from tasks.errors import InputError
from tasks.queue.app import configure
from tasks.queue.producer import enqueue, publish
from tasks.queue.task import process_chunk
from tasks.queue.wire import chunk_message, priority_on_the_wire
from tasks.tracing import TRACEPARENT

#: What differs from message to message, and from process to process.
ITS_OWN = ("delivery_tag", "reply_to")
LABELS = ("Kyoto, Japan", "京都 + 2 more", 'a "quoted" \\ name…', "\ud800 alone")


@pytest.fixture
def settings(settings_for: Callable[..., Settings], redis_url: str) -> Settings:
    return settings_for(REDIS_URL=redis_url)


def _in_line(redis: Redis) -> list[bytes]:
    """All messages, the one that is served next first."""
    return [message for key in keys.queue_keys() for message in redis.lrange(key, 0, -1)[::-1]]


def _send_with_kombu(settings: Settings, chunk_id: str, text: str, priority: int, **options: object) -> None:
    app = configure(settings, settings.redis_url)
    with app.producer_pool.acquire(block=True) as producer:
        process_chunk.apply_async(
            ("job", chunk_id), argsrepr=text, kwargsrepr="", priority=priority_on_the_wire(priority),
            producer=producer, retry=False, **options,
        )  # fmt: skip


@pytest.mark.parametrize("text", LABELS)
@pytest.mark.parametrize("headers", [None, {TRACEPARENT: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}])
def test_a_message_has_the_bytes_that_kombu_sends(
    text: str, headers: dict[str, str] | None, redis: Redis, settings: Settings
) -> None:
    _send_with_kombu(settings, "00000007", text, 5, headers=headers)
    (theirs,) = redis.lrange(keys.queue_keys()[4], 0, -1)
    read = json.loads(theirs)
    ours = chunk_message("job", "00000007", text, 4, headers=headers, id_=read["headers"]["id"])
    for name in ITS_OWN:
        ours = ours.replace(json.loads(ours)["properties"][name], read["properties"][name])
    assert ours.encode() == theirs


def test_messages_are_served_in_their_order_beside_those_of_kombu(redis: Redis, settings: Settings) -> None:
    _send_with_kombu(settings, "a", "a", 5)
    publish(redis, "job", [("b", "b"), ("c", "c")], 5)
    _send_with_kombu(settings, "d", "d", 5)
    publish(redis, "job", [("x", "x"), ("y", "y")], 5, first=True)
    publish(redis, "job", [("urgent", "urgent")], 9)
    served = [json.loads(message)["headers"]["argsrepr"] for message in _in_line(redis)]
    assert served == ["urgent", "x", "y", "a", "b", "c", "d"]


def test_what_cannot_be_sent_is_uncertain_and_no_error() -> None:
    with Redis(port=1) as nowhere:
        assert not publish(nowhere, "job", [("a", "a")], 5)


@pytest.mark.parametrize(("priority", "place"), [(50, 0), (9, 0), (0, 9), (-3, 9)])
def test_a_priority_that_is_none_goes_to_the_nearest(redis: Redis, priority: int, place: int) -> None:
    """A job's options may have been written by hand: the sweeper sends their messages too."""
    assert publish(redis, "job", [("a", "a")], priority)
    assert redis.llen(keys.queue_keys()[place]) == 1


@pytest.mark.parametrize("priority", [-1, 10, 50])
def test_no_job_is_made_with_a_priority_that_is_none(redis: Redis, settings: Settings, priority: int) -> None:
    with pytest.raises(InputError, match=f"priority {priority}: expected 0 to 9"):
        enqueue(["Kyoto"], priority=priority, settings=settings, redis=redis)
    assert not redis.keys(f"{keys.PREFIX}*")
