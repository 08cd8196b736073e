"""Runs one contestant in a process of its own: `python driver.py CONTESTANT TERMS`; needs the standard library only.

TERMS is JSON (`Terms`). It opens the contestant, warms it up, prints what that took, and answers each order that comes
on standard input (`{"first": 0, "count": 800}`, a line of JSON) with a line of figures. It ends with its input.

A contestant has `opened(terms)`, an asynchronous context manager that gives `ask`: one call in, one decoded answer out.
Where `BATCH` is true it gives `ask_all` instead: a list in, a list out.
"""

import asyncio
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

#: Stands in the templates where a call's number comes.
PLACE = 987_654_321
#: Numbers of calls that only warm up.
WARM = 900_000_000
#: Calls of an order without a count: it is measured from outside, and its process is killed.
ENDLESS, ENDLESS_BATCH = 1_000_000, 1_000
#: Failures after which a contestant gives an order up.
MAX_FAILURES = 10


class Terms(NamedTuple):
    """What a contestant is opened with; the empty ones are left out of the measurement."""

    server: str
    in_flight: int
    #: A file with the sixteen requests' bodies, each with PLACE for its number.
    bodies: str
    #: Where answers are cached: the address of a Redis, and a folder.
    redis: str = ""
    folder: str = ""
    #: Requests a minute that all processes together may make.
    per_minute: int = 0


class Call(NamedTuple):
    """One prompt in real size."""

    stage: int
    number: int
    name: str
    messages: list[dict[str, str]]
    response_format: dict[str, Any]
    max_tokens: int

    def body(self) -> dict[str, Any]:
        """The request, as our product sends it."""
        asked = {"model": "sandbox", "messages": self.messages}
        return asked | {"response_format": self.response_format, "max_tokens": self.max_tokens}


def calls(bodies: list[dict[str, Any]], first: int, count: int, *, same: bool = False) -> Iterator[Call]:
    """Calls about `count` numbers, or one again and again."""
    for one in range(first, first + count):
        number = first if same else one
        stage = number % len(bodies)
        body = bodies[stage]
        name, wanted = body["response_format"]["json_schema"]["name"], body["response_format"]
        messages = [
            said | {"content": said["content"].replace(str(PLACE), str(number))} if said["role"] == "user" else said
            for said in body["messages"]
        ]
        yield Call(stage, number, name, messages, wanted, body["max_tokens"])


class Books:
    """What became of an order's calls."""

    def __init__(self) -> None:
        self.answered, self.failed, self.why = 0, 0, ""

    def enter(self, answer: object) -> None:
        if answer and not isinstance(answer, BaseException):
            self.answered += 1
        else:
            self.failed += 1
            self.why = self.why or repr(answer)[:500]


async def in_lanes(ask: Callable[[Call], Awaitable[object]], todo: Iterable[Call], lanes: int) -> Books:
    """Each lane asks one after the other."""
    books, waiting = Books(), iter(todo)

    async def lane() -> None:
        for call in waiting:
            if books.failed >= MAX_FAILURES:
                return
            try:
                books.enter(await ask(call))
            except Exception as problem:  # noqa: BLE001  # a figure, not an end
                books.enter(problem)

    await asyncio.gather(*(lane() for _ in range(lanes)))
    return books


async def in_batches(ask_all: Callable[[list[Call]], Awaitable[Iterable[object]]], todo: Iterable[Call]) -> Books:
    books = Books()
    for answer in await ask_all(list(todo)):
        books.enter(answer)
    return books


def cpu_seconds() -> float:
    """User and system time of this process and of its ended children."""
    of = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in of)


async def carry_out(
    contestant: ModuleType, ask: Any, bodies: list[dict[str, Any]], lanes: int, order: dict[str, Any]
) -> dict[str, Any]:
    is_batch = getattr(contestant, "BATCH", False)
    count = order.get("count") or (ENDLESS_BATCH if is_batch else ENDLESS)
    todo = calls(bodies, order["first"], count, same=order.get("same", False))
    wall, cpu = time.perf_counter(), cpu_seconds()
    books = await in_batches(ask, todo) if is_batch else await in_lanes(ask, todo, lanes)
    figures = {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}
    return figures | {"answered": books.answered, "failed": books.failed, "why": books.why}


def say(what: object) -> None:
    print(json.dumps(what), file=OUT, flush=True)


async def main(contestant: ModuleType, terms: Terms) -> None:
    bodies = json.loads(Path(terms.bodies).read_text())
    async with contestant.opened(terms) as ask:
        # A limit would be spent by it.
        warm_up = {"first": WARM + os.getpid() * 4096, "count": 16 if terms.per_minute else max(terms.in_flight, 64)}
        warmed = await carry_out(contestant, ask, bodies, terms.in_flight, warm_up)
        say(warmed)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            say(await carry_out(contestant, ask, bodies, terms.in_flight, order))


if __name__ == "__main__":
    # Libraries print; what we say goes to the standard output that we were started with.
    OUT = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.modules["driver"] = sys.modules["__main__"]
    asyncio.run(main(importlib.import_module(f"ask_{sys.argv[1]}"), Terms(**json.loads(sys.argv[2]))))
