"""Logs: a sentence with fields, for people on a terminal, as JSON lines everywhere else.

A message names its fields where they stand: `log.info("action=give_back job_id=%s in the middle of its work", job_id)`.
As JSON its fields keep their types. Fields of the surroundings are added (`about`).
"""

import contextlib
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final, TextIO

import msgspec

from tasks.texts import cleaned

#: `name=%s`, a bare placeholder, or `action=word`.
_PART: Final = re.compile(r"(?:(\w+)=)?%(?:\((\w+)\))?[-+ #0-9.]*([a-zA-Z%])|\baction=(?P<action>\w+)")
_ACTION: Final = re.compile(r"\baction=(?P<action>\w+)")
#: What `logging` itself puts into a record.
_OWN: Final = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName", "data", "color_message"}
#: Fields with a meaning of ours: an argument of that name gets another.
_TAKEN: Final = frozenset({"at", "level", "logger", "message", "exception"})
#: Characters of one field, at most: an answer that went wrong may be long.
MAX_CHARACTERS: Final = 2_000
#: Loggers of libraries that say at INFO what is of use to their authors.
_CHATTY: Final = ("aiohttp.access", "tornado.access", "alembic", "amqp", "kombu", "urllib3", "opentelemetry")

_COLOURS: Final = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[1;31m"}
_PLAIN: Final = "\x1b[0m"

_about: ContextVar[Mapping[str, Any]] = ContextVar("what log lines are about", default=MappingProxyType({}))
_encoder: Final = msgspec.json.Encoder(enc_hook=str)


@contextlib.contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Give every line that is logged inside, also by tasks that are started there, these fields."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


class Fields(logging.Filter):
    """Notes on each record what it is about, in the thread and task that logs it."""

    def filter(self, record: logging.LogRecord) -> bool:
        for name, value in _about.get().items():
            record.__dict__.setdefault(name, value)
        return True


def fields_of(record: logging.LogRecord) -> tuple[dict[str, Any], str]:
    """A record's fields with the types that they had, and its sentence without them."""
    named: dict[str, Any] = {}
    template = record.msg if isinstance(record.msg, str) else "%s"
    arguments: Any = record.args if isinstance(record.msg, str) else (record.msg,)
    positional = list(arguments) if isinstance(arguments, tuple) else []
    given = arguments if isinstance(arguments, Mapping) else {}

    def take(found: re.Match[str]) -> str:
        if found["action"]:
            named.setdefault("action", found["action"])
            return ""
        name, key, kind, _ = found.groups()
        if kind == "%":
            return f"{name}=%%" if name else "%%"
        value = given.get(key) if key else positional.pop(0)
        if name is None:
            return _printed(found.group(0), value, key)
        text = _printed(found.group(0).partition("=")[2], value, key)
        named[f"{name}_" if name in _TAKEN else name] = _plain(value, text, kind)
        return ""

    try:
        sentence = _PART.sub(take, template) if arguments else _ACTION.sub(take, template.replace("%", "%%"))
        words = sentence.replace("%%", "%")
    except (IndexError, TypeError, ValueError, KeyError):
        # Arguments that do not fit their message: whatever can be shown is better than a lost line.
        return named, f"{record.msg} {record.args}"
    extra = {name: value for name, value in record.__dict__.items() if name not in _OWN and not name.startswith("_")}
    return {**extra, **named}, " ".join(words.split())


def _printed(placeholder: str, value: Any, key: str | None) -> str:
    text = placeholder % ({key: value} if key else (value,))
    return _short(text).replace("%", "%%")


def _plain(value: Any, text: str, kind: str) -> Any:
    """A value as JSON knows it: numbers as they are printed, all else as text."""
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return float(text) if kind in "feEgG" else value
    return _short(str(value))


def _short(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}…"


class JsonLines(logging.Formatter):
    """One JSON object a line: `at` (UTC), `level`, `logger`, `action`, `message`, then the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields, sentence = fields_of(record)
        line = {
            "at": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            **({"action": fields.pop("action")} if "action" in fields else {}),
            "message": sentence,
            **fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # A lone surrogate, as of a file's name in another encoding, has no UTF-8.
        try:
            return _encoder.encode(line).decode()
        except (UnicodeEncodeError, TypeError):
            return _encoder.encode({name: ascii(value) for name, value in line.items()}).decode()


def sentence(line: str) -> str:
    """What a line of a log says to a person: the message where it is one of `JsonLines`, else the line itself."""
    if line.startswith("{"):
        with contextlib.suppress(msgspec.DecodeError):
            fields = msgspec.json.decode(line, type=dict[str, Any])
            return " ".join(str(fields[name]) for name in ("action", "message") if fields.get(name))
    return line


class Lines(logging.Formatter):
    """A line for people, in colour where it matters."""

    def __init__(self, *, colour: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s", datefmt="%H:%M:%S")
        self._colour = colour

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line, with what it is about where its message does not say that."""
        extra = {name: value for name, value in record.__dict__.items() if name not in _OWN and name[0] != "_"}
        said = " ".join(f"{name}={value}" for name, value in extra.items() if f"{name}=" not in record.message)
        line = cleaned(super().formatMessage(record) + (f" {said}" if said else ""))
        colour = _COLOURS.get(record.levelno) if self._colour else None
        return f"{colour}{line}{_PLAIN}" if colour else line


def configure(level: int | str, style: str, stream: TextIO | None = None) -> None:
    """Log to `stream` (standard error) from now on, in this process, instead of wherever it went before.

    Args:
        level: `DEBUG` to `CRITICAL`.
        style: `json`, `text`, or `auto`: text on a terminal, JSON lines everywhere else.
        stream: where to.
    """
    target = sys.stderr if stream is None else stream
    is_terminal = target.isatty()
    handler = logging.StreamHandler(target)
    handler.addFilter(Fields())
    is_json = style == "json" or (style == "auto" and not is_terminal)
    handler.setFormatter(JsonLines() if is_json else Lines(colour=is_terminal))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    set_level(level)


def set_level(level: int | str) -> None:
    """Log from `level` on, `DEBUG` to `CRITICAL`; libraries at least from WARNING on."""
    root = logging.getLogger()
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
