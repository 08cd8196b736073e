"""The files in deploy/ and docs/reference/metrics.md are as the code is."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from workers.dashboard.metrics_table import HISTOGRAMS, METRICS
from workers.dashboard.prometheus import UP_HELP

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def promql_names(query: str) -> set[str]:
    """Names of metrics in a query."""
    bare = re.sub(r'"[^"]*"', "", query)
    return set(re.findall(r"\b(themes_\w+|up)\b", bare))


def test_the_metrics_that_are_described_are_those_that_are_exported() -> None:
    said = {
        tuple(cell.strip() for cell in line.strip("|\n").split("|"))
        for line in (ROOT / "docs" / "reference" / "metrics.md").read_text().splitlines()
        if line.startswith("| `themes_")
    }
    rows: set[tuple[str, ...]] = {("`themes_up`", "gauge", "1", "", UP_HELP)}
    for metric in (*METRICS, *HISTOGRAMS):
        rows.add((f"`{metric.name}`", metric.kind, metric.unit, ", ".join(metric.labels), metric.help))
    assert said == rows


def test_names_are_as_prometheus_has_them() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"themes_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.help.endswith(".")
        # Plain seconds and bytes, not thousandths or thousands.
        assert not metric.name.endswith(("_ms", "_mb", "_percent"))
    names = [metric.name for metric in (*METRICS, *HISTOGRAMS)]
    assert len(names) == len(set(names))


def test_the_dashboard_file_is_what_its_script_makes() -> None:
    before = (DEPLOY / "grafana" / "themes.json").read_text()
    command = "import json, runpy; print(json.dumps(runpy.run_path('docs/_generate/grafana.py')['dashboard']()))"
    said = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(before) == json.loads(said.stdout)


def test_the_dashboard_loads_as_it_is_with_any_data_source() -> None:
    made: dict[str, Any] = json.loads((DEPLOY / "grafana" / "themes.json").read_text())
    (variable,) = made["templating"]["list"]
    assert (variable["name"], variable["type"]) == ("datasource", "datasource")
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another"
        assert place["x"] + place["w"] <= 24
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["expr"].count("(") == target["expr"].count(")")


def test_alerts_name_what_to_do_and_cover_what_can_go_wrong() -> None:
    (group,) = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    wanted = {
        "ThemesJobStalled", "ThemesConsumerLag", "ThemesErrorRate", "ThemesHitRateFell", "ThemesBudgetNearlyUsed",
        "ThemesWorkerLost", "ThemesNoWorkers",
    }  # fmt: skip
    assert wanted <= {rule["alert"] for rule in group["rules"]}


def test_promtool_accepts_the_files() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    folder = DEPLOY / "prometheus"
    rules = [promtool, "check", "rules", str(folder / "alerts.yml")]
    assert subprocess.run(rules, check=False, capture_output=True).returncode == 0
    config = [promtool, "check", "config", "--syntax-only", str(folder / "prometheus.yml")]
    assert subprocess.run(config, check=False, capture_output=True).returncode == 0


def test_compose_gives_prometheus_the_password_and_keeps_both_on_this_machine() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    assert scrape["static_configs"][0]["targets"] == ["flower:5555"]
    (script,) = services["prometheus"]["command"]
    assert scrape["basic_auth"]["password_file"] in script
    assert f"username: {scrape['basic_auth']['username']}" in script
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
        for volume in services[name]["volumes"]:
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists()
