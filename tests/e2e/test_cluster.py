"""Redis Cluster is refused in one line, with the reason and the way out, wherever it is met."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.connection import check_rights, check_server, connect
from tasks.errors import RedisUnavailableError
from tests.e2e.conftest import Engine, until
from tests.e2e.test_least_rights import EVERY_VERB
from tests.support.servers import Node, node, server

#: Verbs that begin with files, the settings or the database, and end there; health asks only who has reported.
WITHOUT_REDIS = ("prices", "config", "enqueue FILE --dry-run", "report", "results", "failures", "tune llm", "health")
ROLES = ["worker", "consumer", "dashboard", "enqueue FILE", "tune log_level=INFO"]


@pytest.fixture(params=["redis 6.2", "redis 7.0", "valkey 9.1"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Node]:
    """A node that has no slots yet."""
    with node(tmp_path / "node", "cluster-enabled yes", binary=server(request.param)) as made:
        yield made


def _whole(cluster: Node) -> None:
    cluster.client.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
    until("the cluster to be up", lambda: b"state:ok" in cluster.client.execute_command("CLUSTER", "INFO"))


@pytest.mark.parametrize(("is_whole", "database"), [(True, 0), (False, 0), (False, 1)])
def test_it_is_refused_whichever_database_is_asked_for(cluster: Node, database: int, is_whole: bool) -> None:
    if is_whole:
        _whole(cluster)
    with connect(f"redis://127.0.0.1:{cluster.port}/{database}", socket_timeout_seconds=180) as client:
        # The second is what a cluster behind one address meets that calls itself none.
        for check in (check_server, check_rights)[: 2 - database]:
            with pytest.raises(RedisUnavailableError, match="is a cluster, .*without cluster mode"):
                check(client)


@pytest.mark.parametrize("cluster", ["valkey 9.1"], indirect=True)
def test_every_verb_and_role_says_so_in_one_line(cluster: Node, engine: Engine) -> None:
    _whole(cluster)
    (engine.folder / "cities.txt").write_text("Bergen\n")
    engine.env |= {
        "REDIS_URL": f"redis://127.0.0.1:{cluster.port}/0",
        "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
        "THEMES_MODEL": "m",
        "THEMES_TEAMS__BUDGETS": "{research: {usd_per_day: 5}}",
    }
    for words in (*ROLES, *EVERY_VERB):
        if words.startswith(WITHOUT_REDIS):
            continue
        ran = engine.run(*words.replace("FILE", str(engine.folder / "cities.txt")).split())
        lines = [line for line in (ran.stdout + ran.stderr).splitlines() if "is a cluster" in line]
        assert lines, (words, ran.stdout, ran.stderr)
        assert ran.returncode == (1 if words == "doctor" else 2), words
        assert words == "doctor" or (ran.stdout + ran.stderr).strip() == lines[0].strip()
    ran = engine.run_celery("worker")
    assert (ran.returncode, ran.stderr.count("is a cluster")) == (2, 1)
