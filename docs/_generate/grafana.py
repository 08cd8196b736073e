"""Write themes.json: Grafana's dashboard, out of a table that a person can read.

python deploy/grafana/make.py
"""

import json
from pathlib import Path
from typing import Any

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
RATE = "$__rate_interval"
ASKED = f"themes_cache_requests_total[{RATE}]"
HIT = f'themes_cache_requests_total{{result="hit"}}[{RATE}]'
#: What memory did not answer, Redis was asked too: prompts are counted where they come first.
HITS = f'sum(rate({HIT})) / sum(rate(themes_cache_requests_total{{tier="memory"}}[{RATE}]))'
HITS_BY_TIER = f"sum by (tier) (rate({HIT})) / sum by (tier) (rate({ASKED}))"
_STEPS = "queue.wait|lane.wait|llm.rate_wait|llm.pool_wait|flight.wait|result.wait"
WAITS = (
    "histogram_quantile(0.95, sum by (le, step) (rate("
    f'themes_step_duration_seconds_bucket{{step=~"{_STEPS}"}}[{RATE}])))'
)
#: Row: panels as (title, unit, width of 24, [(query, legend)], stacked).
ROWS: list[tuple[str, list[tuple[str, str, int, list[tuple[str, str]], bool]]]] = [
    ("Now", [
        ("LLM calls", "reqps", 4, [(f"sum(rate(themes_llm_calls_total[{RATE}]))", "")], False),
        ("Destinations", "short", 4, [(f"sum(rate(themes_destinations_total[{RATE}]))", "")], False),
        ("From the cache", "percentunit", 4, [(
            HITS, "")], False),
        ("Cost", "currencyUSD", 4, [("themes_llm_cost_usd_total", "")], False),
        ("Workers", "short", 4, [("themes_workers", "")], False),
        ("Stalled jobs", "short", 4, [('themes_jobs{state="stalled"}', "")], False),
    ]),
    ("Throughput", [
        ("Destinations a second", "short", 12,
         [(f"sum by (outcome) (rate(themes_destinations_total[{RATE}]))", "{{outcome}}")], True),
        ("Requests to LLMs a second", "reqps", 12,
         [(f"sum by (outcome) (rate(themes_llm_requests_total[{RATE}]))", "{{outcome}}")], True),
        ("Tokens a second", "short", 12,
         [(f"sum by (kind) (rate(themes_llm_tokens_total[{RATE}]))", "{{kind}}")], True),
        ("US dollars an hour", "currencyUSD", 12,
         [(f"3600 * sum(rate(themes_llm_cost_usd_total[{RATE}]))", "spent"),
          (f"3600 * sum(rate(themes_cache_saved_usd_total[{RATE}]))", "saved by the cache")], False),
    ]),
    ("Latency", [
        ("A call to an LLM", "s", 12, [
            (f"histogram_quantile({q}, sum by (le) (rate(themes_llm_call_duration_seconds_bucket[{RATE}])))", n)
            for q, n in ((0.5, "median"), (0.95, "p95"), (0.99, "p99"))], False),
        ("Where a destination waits (p95)", "s", 12, [(
            WAITS, "{{step}}")], False),
    ]),
    ("Cache", [
        ("Hit rate by tier", "percentunit", 12, [(
            HITS_BY_TIER, "{{tier}}")], False),
        ("Coalesced a second", "short", 12, [(f"sum(rate(themes_llm_coalesced_total[{RATE}]))", "prompts")], False),
    ]),
    ("Resources", [
        ("Lanes", "short", 8, [("themes_lanes", "{{state}}"), ("themes_lanes_waiting", "destinations waiting")], False),
        ("Connections to LLMs", "short", 8, [
            ("themes_llm_connections", "{{state}}"), ("themes_llm_connections_waiting", "callers in line")], False),
        ("CPU by role (cores)", "short", 8,
         [(f"sum by (role) (rate(themes_process_cpu_seconds_total[{RATE}]))", "{{role}}")], True),
        ("Endpoints up", "short", 8, [("themes_llm_endpoint_up", "{{endpoint}} {{model}}")], False),
        ("Cool-downs", "s", 8, [("themes_llm_endpoint_cooling_seconds", "{{endpoint}} {{model}}")], False),
        ("Learned limit a minute", "short", 8,
         [("themes_llm_endpoint_learnt_requests_per_minute", "{{endpoint}} {{model}}")], False),
    ]),
    ("Backlog", [
        ("Messages in the queue", "short", 8, [("themes_queue_messages", "messages")], False),
        ("Results not yet saved", "short", 8, [
            ("themes_results_waiting", "in the stream"), ("themes_consumer_lag_entries", "unread")], False),
        ("Jobs by state", "short", 8, [("themes_jobs", "{{state}}")], False),
        ("Destinations without an outcome", "short", 8, [("themes_destinations_open", "destinations")], False),
        ("Requests in batches", "short", 8, [("themes_batch_requests", "{{state}}")], False),
        ("Budget used, at most", "percentunit", 8, [("themes_budget_used_ratio", "a job")], False),
        ("Memory of Redis", "bytes", 8, [
            ("themes_redis_memory_bytes", "used"), ("themes_redis_memory_limit_bytes", "limit")], False),
    ]),
]  # fmt: skip


def _panel(number: int, kind: str, place: dict[str, int], panel: tuple[str, str, int, Any, bool]) -> dict[str, Any]:
    title, unit, _, queries, stacked = panel
    custom = {"lineWidth": 1, "fillOpacity": 15, "stacking": {"mode": "normal" if stacked else "none"}}
    return {
        "id": number,
        "type": kind,
        "title": title,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0, **({"custom": custom} if kind == "timeseries" else {})},
            "overrides": [],
        },
        "targets": [
            {"refId": chr(65 + at), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend}
            for at, (expr, legend) in enumerate(queries)
        ],
    }


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS:
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "collapsed": False, "panels": [],
             "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}}
        )  # fmt: skip
        top += 1
        kind, height = ("stat", 4) if title == "Now" else ("timeseries", 8)
        left = 0
        for panel in row:
            if left + panel[2] > 24:  # noqa: PLR2004  # Grafana's columns
                left, top = 0, top + height
            place = {"x": left, "y": top, "w": panel[2], "h": height}
            panels.append(_panel(len(panels) + 1, kind, place, panel))
            left += panel[2]
        top += height
    return {
        "uid": "themes",
        "title": "themes",
        "tags": ["themes"],
        "timezone": "",
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "refresh": 1,
                    "hide": 0,
                    "includeAll": False,
                    "multi": False,
                    "current": {},
                    "options": [],
                }
            ]
        },
        "annotations": {"list": []},
        "links": [],
        "panels": panels,
    }


if __name__ == "__main__":
    text = json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"
    (Path(__file__).parents[2] / "deploy" / "grafana" / "themes.json").write_text(text, encoding="utf-8")
