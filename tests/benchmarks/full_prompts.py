"""The product's prompts about a destination with 25 themes, in real size."""

from functools import lru_cache

import msgspec

from tasks.messages import Destination, Theme
from tests.benchmarks.full_answers import FOUND
from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.reply import AnswerFormat
from workers.llm.endpoints.request import request_of
from workers.pipeline.prompts import Input, Stage, load_stages

_CATEGORIES = [category for category, many in FOUND.items() for _ in range(many)]


@lru_cache
def stages() -> tuple[Stage, ...]:
    return tuple(load_stages())


def prompts_about(number: int) -> list[Prompt]:
    """The sixteen prompts of one destination."""
    return [prompt_about(number, stage) for stage in stages()]


def prompt_about(number: int, stage: Stage) -> Prompt:
    themes = [
        Theme(f"t{at}", category, f"Somewhere {at} of {number}", "", []) for at, category in enumerate(_CATEGORIES, 1)
    ]
    about = Input.of(Destination.of(f"Asked {number}"), () if stage.asks == "new themes" else themes)
    return stage.prompt(about)


def body_of(prompt: Prompt) -> bytes:
    """The body of the request, as the product sends it."""
    request = request_of("sandbox", prompt, (), AnswerFormat.JSON_SCHEMA)
    return msgspec.json.encode(request | {"max_tokens": prompt.max_tokens})
