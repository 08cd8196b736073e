"""How many connections to Redis each role has while it works: as docs/explanation/reliability.md says."""

from urllib.parse import urlsplit

import psutil

from tests.e2e.conftest import Engine, until

ROWS = "name\n" + "".join(f"City {number}\n" for number in range(60))
MOST = {"worker": 25, "consumer": 10, "dashboard": 25}


def _connections(pid: int, port: int) -> int:
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    found = [one for process in family for one in process.net_connections("tcp") if one.raddr]
    return sum(one.raddr.port == port and one.status == psutil.CONN_ESTABLISHED for one in found)


def test_each_role_has_no_more_connections_to_redis_than_documented(stack: Engine) -> None:
    stack.sandbox("--latency", "60ms")
    stack.themes("worker", "worker")
    stack.themes("dashboard", "dashboard", "--port", "0")
    port = urlsplit(stack.env["REDIS_URL"]).port or 0
    job_id = stack.run("enqueue", "-", stdin=ROWS).stdout.strip()
    peak = dict.fromkeys(MOST, 0)

    def look() -> bool:
        for role in MOST:
            peak[role] = max(peak[role], _connections(stack.processes[role].pid, port))
        return bool(stack.status(job_id)["state"] == "done")

    until("the job to end", look)
    assert {role: count for role, count in peak.items() if count > MOST[role]} == {}
    assert all(peak.values())
