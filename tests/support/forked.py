"""`themes` at once: asks the process of tests/support/forks.py for a child that has this one's streams.

python -IS forked.py SOCKET ARGUMENT ...
"""

import array
import json
import os
import signal
import socket
import sys


def main() -> int:
    """Wait for the child, pass on what ends this process, and return its exit code."""
    place = {"module": "scripts.main", "cwd": os.getcwd(), "host": []}  # noqa: PTH109
    data = json.dumps({"arguments": sys.argv[2:], "env": dict(os.environ), **place}).encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
        connection.sendmsg([len(data).to_bytes(4, "big") + data], streams)
        with connection.makefile("r") as words:
            pid = int(words.readline())
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda given, _: os.kill(pid, given))
            return int(words.readline()) & 0xFF


if __name__ == "__main__":
    sys.exit(main())
