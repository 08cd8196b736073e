from scripts.lib.supervisor import MAX_BACKOFF_SECONDS, backoff_seconds
from workers.worker.liveness import LivenessDetector


def test_an_idle_worker_with_waiting_messages_is_wedged_after_the_bound() -> None:
    detector = LivenessDetector(after_seconds=30)
    assert not detector.is_wedged(now=0, busy=0, waiting=5)
    assert not detector.is_wedged(now=29, busy=0, waiting=5)
    assert detector.is_wedged(now=30, busy=0, waiting=5)


def test_work_in_hand_or_an_empty_queue_clears_the_suspicion() -> None:
    detector = LivenessDetector(after_seconds=30)
    detector.is_wedged(now=0, busy=0, waiting=5)
    assert not detector.is_wedged(now=20, busy=3, waiting=5)
    assert not detector.is_wedged(now=45, busy=0, waiting=5)
    assert not detector.is_wedged(now=60, busy=0, waiting=0)
    assert not detector.is_wedged(now=80, busy=0, waiting=1)


def test_a_worker_without_a_heartbeat_counts_as_idle() -> None:
    detector = LivenessDetector(after_seconds=10)
    detector.is_wedged(now=0, busy=None, waiting=1)
    assert detector.is_wedged(now=10, busy=None, waiting=1)


def test_the_pause_between_starts_grows_to_a_bound() -> None:
    assert backoff_seconds(0) < backoff_seconds(1) < backoff_seconds(3)
    assert backoff_seconds(50) == MAX_BACKOFF_SECONDS
