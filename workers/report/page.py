"""A report as one HTML file without network and script; the policy allows the style sheet alone, by its hash."""

import base64
import hashlib
import time
from html import escape
from pathlib import Path
from typing import Any, Final

from tornado.template import Template

import workers.dashboard
from tasks.texts import count
from workers import observe
from workers.observe.format import NOTHING, dollars, duration
from workers.observe.measurements import HOPS
from workers.report import charts
from workers.report.report import Hop, JobReport, Slow

_PAGES: Final = Path(__file__).parent / "pages"
_SHARED: Final = Path(workers.dashboard.__path__[0]) / "pages"
#: Share of a destination's time from which on a hop is named beside its bar.
NAMED_SHARE: Final = 0.005
#: What the colours mean.
_LEGEND: Final = {
    "llm": "the LLM answers", "wait": "waiting in a line", "cache": "cache and Redis", "cpu": "checking answers",
}  # fmt: skip


def page(report: JobReport) -> str:
    style = "".join(
        path.read_text("utf-8") for path in (_SHARED / "colours.css", _SHARED / "base.css", _PAGES / "report.css")
    )
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    template = Template((_PAGES / "report.html").read_text("utf-8"), name="report.html", autoescape="xhtml_escape")
    return template.generate(style=style, digest=digest, **values(report)).decode()


def values(report: JobReport) -> dict[str, Any]:
    job, account = report.job, report.account
    return {
        "job": job,
        "tag": "paused" if job["paused"] else job["state"],
        "made": moment(report.made_at),
        "when": f"{moment(account.started_at)} to {moment(account.ended_at)}" if account.runs else "not begun",
        "headline": headline(report),
        "figures": figures(report),
        "report": report,
        "breakable": breakable,
        "charts": charts,
        "cost": cost,
        "format": observe.format,
        "of": of,
        "share": share,
        "went": went,
        "curves": _curves(report),
        "lane_hops": _waterfall([hop for hop in report.hops if hop.place == "lane"]),
        "other_hops": _waterfall([hop for hop in report.hops if hop.place != "lane"]),
        "switch": lambda is_on: "?" if is_on is None else "on" if is_on else "off",
        "legend": _LEGEND,
    }


def breakable(words: str) -> str:
    """Escaped, with places where a setting's long name may go on in the next line."""
    return escape(words).replace("_", "_<wbr>")


def headline(report: JobReport) -> str:
    if not report.findings:
        return "Bottleneck: none was measured"
    first = report.findings[0]
    if first.resource == "unknown":
        return "Too little was measured to name a bottleneck."
    return f"Bottleneck: {first.name}"


def figures(report: JobReport) -> list[tuple[str, str, str, str]]:
    """The headline numbers: a name for tests and scripts, what it is, the number, and a word about it."""
    job, usage, account = report.job, report.usage, report.account
    ended = job["done"] + job["failed"]
    first = "" if account.first_at is None else f"first after {duration(max(0, account.first_at - account.started_at))}"
    estimated = f"{count(usage.estimated_calls, 'call')} by length" if usage.estimated_calls else ""
    cached = f"{usage.cached_tokens:,} out of the provider's cache" if usage.cached_tokens else ""
    reasoning = f"{usage.reasoning_tokens:,} of reasoning" if usage.reasoning_tokens else ""
    found = [
        ("ended", "destinations", f"{ended:,}", f"of {job['total']:,}"),
        ("failed", "failed", f"{job['failed']:,}", f"{job['partial']:,} partial"),
        ("seconds", "time", duration(report.seconds), first),
        ("rate", "destinations/s", f"{report.destinations_per_second:.3g}", "over the whole time"),
        ("calls", "LLM calls", f"{usage.llm_calls:,}", f"{report.calls_per_second:.3g}/s"),
        ("hits", "from the cache", f"{usage.cache_hits:,}", f"{usage.memory_hits:,} out of memory"),
        ("coalesced", "coalesced", f"{usage.coalesced:,}", "asked once for several"),
        ("hit_rate", "cache hit rate", share(report.hit_rate), "hits and coalesced"),
        ("tokens_in", "prompt tokens", f"{usage.prompt_tokens:,}", ", ".join(filter(None, (cached, estimated)))),
        ("tokens_out", "completion tokens", f"{usage.completion_tokens:,}", reasoning),
        ("cost", "cost", cost(usage.cost_usd), f"saved {cost(usage.saved_usd)}"),
        ("retried", "runs", f"{account.runs:,}", f"{account.retried:,} were new tries"),
    ]
    if use := report.batches:
        expired = f", {use.expired:,.0f} expired" if use.expired else ""
        saved = f", saved {dollars(use.saved_usd)}" if use.saved_usd else ""
        requests = f"{use.answered:,.0f} of {use.requests:,.0f} answered"
        found.append(("batches", "batches", f"{use.sent:,.0f}", f"{requests}{expired}{saved}"))
    return found


def cost(usd: float | None) -> str:
    """US dollars; a price that is not set is not 0."""
    return "no price set" if usd is None else dollars(usd)


def share(part: float | None) -> str:
    if part is None:
        return NOTHING
    if 0 < part < 0.0001:  # noqa: PLR2004
        return "<0.01%"
    # Hardly anything and nearly everything are not nothing and everything.
    is_extreme = 0 < part < 0.01 or 0.99 < part < 1  # noqa: PLR2004
    return f"{part:.2%}" if is_extreme else f"{part:.0%}"


def moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _curves(report: JobReport) -> list[tuple[str, str, str]]:
    points = report.account.timeline
    if not report.account.runs:
        return []
    found = []
    for words, kind, series in (
        ("destinations/s", "llm", [point.ended / point.seconds for point in points]),
        ("LLM calls/s", "cache", [point.calls / point.seconds for point in points]),
        ("destinations in work", "wait", [point.in_work for point in points]),
    ):
        most = f"{max(series, default=0.0):.3g}"
        found.append((words, most, charts.curve(series, f"{words} over time, peak {most}", kind=kind)))
    return found


def _waterfall(hops: list[Hop]) -> list[dict[str, str]]:
    rows, begin = [], 0.0
    for hop in hops:
        part = hop.share or 0.0
        rows.append(
            {
                "name": hop.name, "words": hop.words, "count": f"{hop.count:,}", "total": duration(hop.total_seconds),
                "share": "" if hop.share is None else share(hop.share),
                "bar": "" if hop.share is None else charts.bar(
                    begin, part, charts.kind_of(hop.name), f"{hop.words}: {part:.1%}"
                ),
                **{name: duration(getattr(hop, f"{name}_ms") / 1000) for name in ("p50", "p95", "p99")},
            }
        )  # fmt: skip
        begin += part
    return rows


def went(slow: Slow) -> str:
    """The three largest parts of a destination's time, in words."""
    parts = sorted(slow.shares.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{HOPS[hop]} {part:.0%}" for hop, part in parts if part >= NAMED_SHARE) or "not kept"


def of(part: float | None, whole: float | None) -> str:
    return NOTHING if part is None or whole is None else f"{part:.1f} of {whole:.3g}"
