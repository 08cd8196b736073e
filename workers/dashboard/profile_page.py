"""`/jobs/ID/destinations/ID`: a profile, as a page and as JSON; `pages/profile.js` copies and prints it."""

from typing import Any

import msgspec

from workers.dashboard.guard import Handler
from workers.dashboard.jobs_pages import PageHandler, Site
from workers.dashboard.profile_values import profile_values
from workers.results.queries.lookups import neighbours, profile_of


class ProfilePage(PageHandler):
    async def answer(self, *parts: str) -> None:
        job_id, destination_id, kind = parts
        store = await self.site.store()
        row = await profile_of(store, job_id, destination_id)
        if row is None:
            self.say(404, "There is no such profile", f"Job {job_id} has none for {destination_id}, or not yet.")
            return
        profile = row.profile()
        if kind:
            self.set_header("Content-Type", "application/json; charset=utf-8")
            self.finish(msgspec.json.encode(profile))
            return
        before, after = await neighbours(store, job_id, destination_id)
        self.show(
            "profile.html", job_id=job_id, profile=profile, before=before, after=after, here="jobs",
            **profile_values(profile),
        )  # fmt: skip


def handlers(site: Site) -> list[tuple[str, type[Handler], dict[str, Any]]]:
    profile = r"/jobs/([A-Za-z0-9_.-]{1,100})/destinations/([A-Za-z0-9_.-]{1,100})"
    return [
        (rf"{profile}(/profile\.json)", ProfilePage, {"site": site}),
        (rf"{profile}()/?", ProfilePage, {"site": site}),
    ]
