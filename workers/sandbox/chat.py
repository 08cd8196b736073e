"""One chat completion of the sandbox LLM: a request's bytes in, the completion out. `server` speaks HTTP."""

import hashlib
import random
import time
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from config.errors import ConfigError
from workers.sandbox import answers
from workers.sandbox.faults import spoil
from workers.sandbox.instances import Instances, NoInstanceError

MODEL: Final = "sandbox"
FORMATS: Final = ("json_schema", "json_object", "text")
STYLES: Final = ("knowledge", "random")
#: Characters that count as one token, about the mean of English text.
CHARACTERS_PER_TOKEN: Final = 4
#: Compiled schemas kept; a pipeline uses a few dozen.
SCHEMAS_KEPT: Final = 512
#: Prefix of the line that carries the schema where the response format does not.
SCHEMA_LINE: Final = "JSON Schema: "
_REFUSAL: Final = "I'm sorry, but I can't help with that."


class Message(msgspec.Struct, frozen=True):
    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class NamedSchema(msgspec.Struct, frozen=True):
    name: str = ""
    schema: msgspec.Raw = msgspec.Raw(b"true")


class ResponseFormat(msgspec.Struct, frozen=True):
    type: Literal["json_schema", "json_object", "text"] = "text"
    json_schema: NamedSchema | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """What the sandbox reads of a chat completion request; other members are ignored."""

    messages: list[Message]
    response_format: ResponseFormat | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: int | None = None
    stream: bool = False
    service_tier: str | None = None


class Refusal(Exception):  # noqa: N818  # an answer to the caller, not a failure of ours
    def __init__(self, status: int, message: str, *, code: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, kind=kind, code=code)


class Prompt(msgspec.Struct, frozen=True):
    text: str
    digest: str
    seed: int
    max_tokens: int | None
    instances: Instances | None
    question: answers.Question
    wants_json: bool
    #: As asked; "default" where it was left to the server.
    tier: str


class Chat:
    """Understands and answers; keeps the compiled schemas. Options as in `workers.sandbox.SandboxServer`."""

    def __init__(self, *, seed: int, style: str, formats: Sequence[str], format_refusal: int) -> None:
        if unknown := set(formats) - set(FORMATS):
            raise ConfigError(f"--formats: unknown format {min(unknown)!r}; any of {','.join(FORMATS)}")
        if style not in STYLES:
            raise ConfigError(f"--style: expected one of {', '.join(STYLES)}, got {style!r}")
        self._seed = seed
        self._wild = style == "random"
        self._formats = frozenset(formats)
        self._format_refusal = format_refusal
        self._schemas: dict[bytes, Instances] = {}

    def understand(self, body: bytes) -> Prompt:
        try:
            asked = msgspec.json.decode(body, type=ChatRequest)
        except msgspec.DecodeError as exc:
            raise Refusal(400, f"The request could not be read: {exc}", code="invalid_request") from exc
        if asked.stream:
            raise Refusal(400, "The sandbox does not stream: leave out 'stream'.", code="unsupported_parameter")
        wanted = asked.response_format or ResponseFormat()
        if wanted.type not in self._formats:
            raise Refusal(
                self._format_refusal,
                f"'response_format' of type '{wanted.type}' is not supported with this model.",
                code="unsupported_response_format",
            )
        named = wanted.json_schema if wanted.type == "json_schema" else None
        if wanted.type == "json_schema" and (named is None or bytes(named.schema) == b"true"):
            raise Refusal(400, "Missing parameter: 'response_format.json_schema.schema'.", code="missing_parameter")
        text = "\n".join(message.text for message in asked.messages)
        schema = bytes(named.schema) if named else _schema_line(text)
        instances = self._compiled(schema) if schema is not None else None
        name = named.name if named else ""
        return Prompt(
            text=text,
            digest=hashlib.blake2b(msgspec.json.encode(asked.messages), digest_size=16).hexdigest(),
            seed=self._seed if asked.seed is None else hash((self._seed, asked.seed)),
            max_tokens=asked.max_completion_tokens or asked.max_tokens,
            instances=instances,
            question=answers.understand(text, schema=instances.schema if instances else None, schema_name=name),
            wants_json=wanted.type != "text",
            tier=asked.service_tier if asked.service_tier not in (None, "auto", "standard") else "default",
        )

    def _compiled(self, schema: bytes) -> Instances:
        compiled = self._schemas.get(schema)
        if compiled is None:
            try:
                compiled = Instances(msgspec.json.decode(schema), wild=self._wild)
            except ValueError as exc:
                raise Refusal(400, f"Invalid schema for response_format: {exc}", code="invalid_schema") from exc
            if len(self._schemas) >= SCHEMAS_KEPT:
                del self._schemas[next(iter(self._schemas))]
            self._schemas[schema] = compiled
        return compiled

    def _content(self, prompt: Prompt) -> str:
        if prompt.instances is None:
            return '{"answer":"sandbox"}' if prompt.wants_json else "This is the sandbox, not a model."
        if not self._wild:
            instance = answers.fill(prompt.question, prompt.instances.schema, prompt.seed)
            if instance is not None and prompt.instances.is_valid(instance):
                return msgspec.json.encode(instance).decode()
        key = hashlib.blake2b(f"{prompt.seed}/{prompt.digest}".encode(), digest_size=8).digest()
        try:
            instance = prompt.instances.draw(random.Random(key))  # noqa: S311  # repeatable on purpose
        except NoInstanceError as exc:
            raise Refusal(400, f"Invalid schema for response_format: {exc}", code="invalid_schema") from exc
        return msgspec.json.encode(instance).decode()

    def completion(self, prompt: Prompt, fault: str = "") -> dict[str, Any]:
        """The body of the answer, spoilt by this kind of fault. Raises Refusal: the schema has no instance."""
        content = self._content(prompt)
        finish = {"truncated": "length", "content_filter": "content_filter"}.get(fault, "stop")
        check = prompt.instances.is_valid if prompt.instances else lambda _: False
        text = spoil(fault, content, is_valid=check) if fault else content
        most = prompt.max_tokens
        if most is not None and tokens(text) > most:
            text, finish = text[: most * CHARACTERS_PER_TOKEN], "length"
        if fault in ("content_filter", "empty", "refusal"):
            text = _REFUSAL if fault == "refusal" else ""
        asked, said = tokens(prompt.text), tokens(text)
        said_as, other = ("refusal", "content") if fault == "refusal" else ("content", "refusal")
        message = {"role": "assistant", said_as: text, other: None}
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return {
            "id": f"chatcmpl-sandbox-{prompt.digest}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": MODEL,
            "choices": [] if fault == "empty" else [choice],
            "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
            "service_tier": prompt.tier,
        }


def tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def _schema_line(text: str) -> bytes | None:
    before, mark, after = text.rpartition(SCHEMA_LINE)
    if not mark or (before and not before.endswith("\n")):
        return None
    return after.partition("\n")[0].strip().encode("utf-8", "surrogatepass")


def error_body(message: str, *, kind: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
