"""Answers that could not be used are kept in Redis: the last few, cut, for a while, whatever they hold."""

from redis import Redis

from tasks import keys
from tasks.connection import connect_async
from tasks.errors import InvalidAnswerError
from tasks.jobs.refused_answers import KEPT, MAX_CHARACTERS, RefusedAnswer, decode
from tests.support.stored import KYOTO
from workers.llm.endpoints.answers import AnswerSchema
from workers.llm.endpoints.prompt import Prompt
from workers.pipeline.refused_answers import MAX_UNDER_WAY, RefusedAnswers


def _error(answer: str) -> InvalidAnswerError:
    error = InvalidAnswerError("the answer is not JSON, also when asked again")
    error.answer = answer
    return error


async def test_the_last_answers_are_kept_cut_and_for_a_while(redis: Redis, redis_url: str) -> None:
    prompt = Prompt("discover.food", "1", "You know food.", "x" * 20_000, "Kyoto", "kyoto", AnswerSchema("x", {}), 100)
    client = connect_async(redis_url, socket_timeout_seconds=180)
    kept = RefusedAnswers(client)
    kept.keep("j", KYOTO, prompt, InvalidAnswerError("another process has seen its answer"))
    for number in range(KEPT + 5):
        kept.keep("j", KYOTO, prompt, _error(f"\ud800 {number} " + "y" * 20_000))
        if number % MAX_UNDER_WAY == 0:
            await kept.close()
    await kept.close()
    await client.aclose()
    found = decode(redis.lrange(keys.answers("j"), 0, -1))
    assert len(found) == KEPT
    assert isinstance(found[0], RefusedAnswer)
    assert f" {KEPT + 4} " in found[0].answer, "the newest first"
    assert [len(text) for text in (found[0].prompt, found[0].answer)] == [MAX_CHARACTERS] * 2
    assert found[0].name == "Kyoto, Japan"
    assert 0 < redis.ttl(keys.answers("j")) <= keys.KEEP_SECONDS
    redis.lpush(keys.answers("j"), b"no answer", b"\xff")
    assert len(decode(redis.lrange(keys.answers("j"), 0, -1))) == KEPT
