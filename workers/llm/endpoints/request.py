"""The body of a request to an OpenAI-compatible server: the question, in one of the response formats."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from workers.llm.endpoints.prompt import Prompt
from workers.llm.endpoints.reply import AnswerFormat

#: Begins the line of a prompt that carries its schema.
SCHEMA_LINE: Final = "JSON Schema: "


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier answer and what was wrong with it, for the one re-ask."""

    answer: str
    problem: str


def request_of(model: str, prompt: Prompt, history: Sequence[Turn], style: AnswerFormat) -> dict[str, Any]:
    """The body of a request, without its parameters; an earlier answer and its mistake come last.

    The data stands before the instructions: prompts of one round about one destination begin alike.
    """
    instructions = prompt.instructions
    if style is not AnswerFormat.JSON_SCHEMA:
        instructions = f"{instructions}\n\nAnswer with one JSON object.\n{SCHEMA_LINE}{prompt.schema.text}"
    messages = [
        {"role": "system", "content": prompt.system},
        {"role": "user", "content": f"{prompt.data}\n\n{instructions}"},
    ]
    for turn in history:
        # Some servers take no empty message.
        messages.append({"role": "assistant", "content": turn.answer or "{}"})
        messages.append(
            {
                "role": "user",
                "content": f"That was not valid: {turn.problem}\nAnswer again, with one whole object.\n"
                f"{SCHEMA_LINE}{prompt.schema.text}",
            }
        )
    body: dict[str, Any] = {"model": model, "messages": messages}
    if style is AnswerFormat.JSON_SCHEMA:
        body["response_format"] = prompt.schema.response_format
    elif style is AnswerFormat.JSON_OBJECT:
        body["response_format"] = {"type": "json_object"}
    return body
