"""`/jobs/ID`: one job, live; and `status.json`, which the page asks again where events do not say all."""

import asyncio
from dataclasses import asdict
from typing import Any, Final

from tasks.errors import DatabaseError
from tasks.jobs.registry import JobStatus, whole_id
from workers.dashboard.actions import Actions
from workers.dashboard.answers_page import may_see_answers
from workers.dashboard.job_facts import FactsReader, JobFacts, retry_command
from workers.dashboard.job_values import embedded, job_counts, job_values, label, tag_of
from workers.dashboard.job_words import moments, sentence, tiles, why
from workers.dashboard.jobs_pages import PageHandler, Site
from workers.dashboard.recent import LATEST, Recent
from workers.observe.format import NOTHING, duration, percent
from workers.results.queries.destination_pages import Choice, DestinationLine, destination_page

#: What the table's chips choose, and what a job's bar is made of.
CHIPS: Final = ("all", "running", "complete", "partial", "failed")


class _OfJob(PageHandler):
    def initialize(self, site: Site, facts: FactsReader) -> None:  # type: ignore[override]  # Tornado's keywords
        super().initialize(site)
        self._facts = facts

    async def facts(self, status: JobStatus) -> JobFacts:
        """What the database adds; nothing where it cannot be read, for Redis has the rest."""
        try:
            return await self._facts.of(await self.site.store(), status)
        except DatabaseError:
            return JobFacts(problems=[])


class JobPage(_OfJob):
    async def answer(self, *parts: str) -> None:
        (asked,) = parts
        job_id = await asyncio.to_thread(whole_id, self.site.redis, asked)
        if job_id != asked:
            self.redirect(f"{self.root}/jobs/{job_id}")
            return
        status, is_known = await self.site.status(job_id)
        recent = await self.site.recent.of(job_id) if is_known else Recent()
        rows, shown = recent.rows(), len(recent.ended["all"])
        if not rows and status.done + status.failed:
            rows = await self._stored(job_id)
            shown = min(len(rows), LATEST)
        running = {} if status.is_settled else recent.running
        facts = await self.facts(status)
        data = {
            "job_id": job_id,
            "is_final": status.is_final or not is_known,
            "counts": job_counts(status),
            "budget_usd": status.budget_usd,
            "points": recent.points,
            "last_id": recent.last_id if recent.last_id != "0-0" else "",
            "steps": facts.steps,
            "running": running,
        }
        again = f" {retry_command(job_id)} goes on with it."
        self.show(
            "job.html", job=job_values(status), live=is_known, rows=rows, shown=shown, facts=facts, label=label,
            tiles=tiles(status), moments=moments(status), took=duration(status.seconds), actions=Actions(self, status),
            running=list(reversed(running.items())), chips=CHIPS, data=embedded(data), row_values=row_values,
            asked=self.get_query_argument("asked", ""), verdict=await self.site.verdict(status, is_known=is_known),
            answers=may_see_answers(self),
            note="" if is_known else f"Redis no longer knows this job: these are the results.{again}",
        )  # fmt: skip

    async def _stored(self, job_id: str) -> list[dict[str, Any]]:
        """The last destinations of the input, and the last ones that lack something, where no event tells of them."""
        try:
            store = await self.site.store()
            found: dict[str, dict[str, Any]] = {}
            for state in ("all", "partial", "failed"):
                choice = Choice(state, is_descending=True)
                for line in await destination_page(store, job_id, choice, offset=0, limit=LATEST):
                    if line.state != "queued":
                        found.setdefault(line.destination_id, _row(line))
        except DatabaseError:
            return []
        return list(found.values())


def _row(line: DestinationLine) -> dict[str, Any]:
    state = "failed" if line.state == "failed" else "partial" if line.partial else "complete"
    return asdict(line) | {"state": state, "top_themes": ()}


def row_values(row: dict[str, Any]) -> dict[str, str]:
    """What a row of the table shows beside the name."""
    elapsed = row["elapsed_ms"]
    said = why(row["error_class"], row["message"])
    return {
        "why": f"{row['stage']}: {said}" if row["state"] == "failed" else ", ".join(row["top_themes"] or ()),
        "quality": percent(row["quality"], NOTHING),
        "themes": NOTHING if row["themes"] is None else str(row["themes"]),
        "time": NOTHING if elapsed is None else duration(elapsed / 1000),
    }


class JobNow(_OfJob):
    async def answer(self, *parts: str) -> None:
        status, is_known = await self.site.status(parts[0])
        words = job_values(status)
        self.set_header("Content-Type", "application/json; charset=utf-8")
        known = {
            "tag": tag_of(status), "words": words["words"], "batches": words["batches"],
            "sentence": sentence(status), "is_final": status.is_final,
            "verdict": await self.site.verdict(status, is_known=is_known), "counts": job_counts(status),
        }  # fmt: skip
        self.finish(embedded(known))


def handlers(site: Site) -> list[tuple[str, type[PageHandler], dict[str, Any]]]:
    job, shared = r"/jobs/([A-Za-z0-9_.-]{1,100})", {"site": site, "facts": FactsReader()}
    return [(rf"{job}/?", JobPage, shared), (rf"{job}/status\.json", JobNow, shared)]
