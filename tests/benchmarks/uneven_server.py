"""A light server as real ones are: `uneven_server.py SECONDS SIGMA HANDSHAKE FAULTS`.

It answers in real size (`full_answers.py`), after lognormal times with the median SECONDS and the shape SIGMA. The
first request of a connection waits HANDSHAKE seconds more: what TCP and TLS 1.3 take between two machines, two round
trips. Of the requests a share of FAULTS gets the status 500.
"""

import asyncio
import random
import sys

if __package__ is None or not __package__:
    from full_answers import bodies  # started as a script, its folder is on the path
    from light_server import Full, reply, serve
else:
    from tests.benchmarks.full_answers import bodies
    from tests.benchmarks.light_server import Full, reply, serve

ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"


class Uneven(Full):
    """A connection to a server that is sometimes slow, and sometimes fails."""

    chance = random.Random(7)

    def __init__(self, median: float, sigma: float, handshake: float, faults: float) -> None:
        super().__init__()
        self._median, self._sigma, self._shakes, self._faults = median, sigma, handshake, faults

    def seconds_of(self, request: bytes) -> float:
        del request
        waits, self._shakes = self._shakes, 0.0
        return waits + self._median * self.chance.lognormvariate(0, self._sigma)

    def answer_to(self, request: bytes) -> bytes:
        return ERROR if self.chance.random() < self._faults else super().answer_to(request)


if __name__ == "__main__":
    Uneven.known = {name: [reply(body) for body in some] for name, some in bodies().items()}
    asyncio.run(serve(Uneven, *map(float, sys.argv[1:5])))
