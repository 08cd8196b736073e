"""Things that are no messages of ours, as an unkind world puts them into a queue."""

import base64
import json
import os
import random
from typing import Any

from tasks.queue.wire import PROCESS_CHUNK


def message(job_id: str = "no-job", chunk_id: str = "00000000", **changed: Any) -> dict[str, Any]:
    """A call of our task, as kombu writes it."""
    body = base64.b64encode(json.dumps([[job_id, chunk_id], {}, {"callbacks": None}]).encode()).decode()
    properties = {
        "correlation_id": "1",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "themes", "routing_key": "themes"},
        "priority": 4,
        "body_encoding": "base64",
        "delivery_tag": "tag",
    }
    headers = {"lang": "py", "task": PROCESS_CHUNK, "id": "1", "argsrepr": "x", "kwargsrepr": ""}
    whole = {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }
    return whole | changed


def _body(value: Any) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def kinds(chance: random.Random) -> list[bytes]:
    """One entry of every kind; some differ each time."""
    good = message()
    text = json.dumps(good).encode()
    spoiled = bytearray(text)
    spoiled[chance.randrange(len(spoiled))] = chance.randrange(256)
    without = [json.dumps({k: v for k, v in good.items() if k != name}) for name in good]
    wrong = [
        message(body=None),
        message(body="not base64 !"),
        message(body=_body([[1, 2], {}, {}])),
        message(body=_body([["only one"], {}, {}])),
        message(body=_body([["x" * 100_000, "y"], {}, {}])),
        message(body=_body([["\u0000", "\n"], {}, {}])),
        message(body=_body([["a", "b"], {"c": 1}, {}])),
        message(body=_body({"args": 1})),
        message(body=_body(None)),
        message(headers=good["headers"] | {"task": "os.system"}),
        message(headers=good["headers"] | {"id": None}),
        message(headers=[]),
        message(properties=[]),
        message(properties=good["properties"] | {"delivery_tag": 5}),
        message(properties=good["properties"] | {"delivery_info": "x"}),
        message(properties=good["properties"] | {"priority": "high"}),
        message(**{"content-type": "application/x-python-serialize"}),
        message(**{"content-encoding": "utf-16"}),
    ]
    return [
        b"",
        b"\x00" * 100,
        os.urandom(chance.randrange(1, 300)),
        b"not json",
        b"[]",
        b"[1, 2, 3]",
        b"42",
        b"null",
        b'"text"',
        b"{}",
        b"[" * 5000,
        b'{"a":' * 5000,
        "ü".encode("utf-16"),
        text[: chance.randrange(len(text))],
        bytes(spoiled),
        b"x" * 200_000,
        *(one.encode() for one in without),
        *(json.dumps(one).encode() for one in wrong),
    ]
