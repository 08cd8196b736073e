"""`/jobs/ID/answers`: the last answers of a job that could not be used, where the settings and a login allow it."""

from typing import Any

from redis import ResponseError

from tasks import keys
from tasks.jobs.refused_answers import decode
from workers.dashboard.guard import has_login
from workers.dashboard.job_words import moment
from workers.dashboard.jobs_pages import PageHandler, Site


def may_see_answers(handler: PageHandler) -> bool:
    return has_login(handler.application.options) and handler.site.settings.dashboard.show_answers


class Answers(PageHandler):
    async def answer(self, *parts: str) -> None:
        (job_id,) = parts
        if not may_see_answers(self):
            why = "Prompts and answers are shown with dashboard.show_answers and a login (dashboard.basic_auth)."
            self.say(403, "Answers are not shown", why)
            return
        status, _ = await self.site.status(job_id)
        try:
            entries: Any = await self.site.recent.redis.lrange(keys.answers(job_id), 0, -1)
        except ResponseError:
            entries = []  # a key of another type
        self.show("answers.html", job_id=job_id, name=status.name, answers=decode(entries), moment=moment)


def handlers(site: Site) -> list[tuple[str, type[PageHandler], dict[str, Any]]]:
    return [(r"/jobs/([A-Za-z0-9_.-]{1,100})/answers/?", Answers, {"site": site})]
