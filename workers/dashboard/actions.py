"""What can be done to a job from its page: pause, resume, cancel, ask again.

With a login each is a form that is sent by POST; without one each is the command to copy. A form of another site is
refused twice: by the guard (`workers.dashboard.guard`), and because it does not have the token of our own pages, which
also holds where a browser sends a password by itself. Every act is a line of the log with who did it.
"""

import asyncio
import logging
from base64 import b64decode
from dataclasses import dataclass, field
from typing import Any, Final

from tornado.web import HTTPError, RequestHandler

from tasks.errors import JobNotFoundError
from tasks.jobs import registry as jobs
from tasks.jobs.pauses import format_paused
from tasks.jobs.registry import JobStatus
from tasks.queue import control
from tasks.texts import clean_line
from workers.dashboard.guard import has_login
from workers.dashboard.job_facts import retry_command
from workers.dashboard.jobs_pages import PageHandler, Site
from workers.results.queries.retrying import ask_again, candidates

log = logging.getLogger("themes.dashboard")

ACTS: Final = ("pause", "resume", "cancel", "retry")
MAX_CLASS: Final = 200


@dataclass(frozen=True, slots=True)
class Act:
    """One thing to do: the words on its button, the command that does the same, what is to be known before."""

    name: str
    words: str
    command: str
    #: Fields of its form.
    fields: dict[str, str] = field(default_factory=dict)
    warning: str = ""
    #: A button can do it; else it needs a word of the user's, and only the command can.
    is_simple: bool = True


class Actions:
    """What a job's page offers; `has_login` says whether by buttons or by commands."""

    def __init__(self, handler: RequestHandler, status: JobStatus) -> None:
        self.has_login = has_login(handler.application.options)  # type: ignore[attr-defined]  # Flower's
        self.all = acts_of(status)


def acts_of(status: JobStatus) -> list[Act]:
    job_id, found = status.job_id, []
    if status.paused and status.paused != "batch":  # which would be refused again
        # With its budget used up it needs a higher one.
        is_simple = status.paused != "budget"
        command = format_paused(status).rpartition("themes resume ")[2] if not is_simple else job_id
        found.append(Act("resume", "Resume", f"themes resume {command}", is_simple=is_simple))
    elif not status.paused and status.state in {"queued", "running", "stalled"}:
        found.append(Act("pause", "Pause", f"themes pause {job_id}"))
    if not status.paused and status.failed:
        found.append(Act("retry", f"Retry {status.failed:,} failed", retry_command(job_id)))
    if not status.paused and status.partial:
        words = (
            f"{status.failed:,} failed, {status.partial:,} partial" if status.failed else f"{status.partial:,} partial"
        )
        found.append(Act("retry", f"Retry {words}", retry_command(job_id, partial=True), {"partial": "1"}))
    if not status.is_final and status.state != "unreadable":
        warning = "Nothing more of it is asked; what is finished stays."
        found.append(Act("cancel", "Cancel", f"themes cancel {job_id}", warning=warning))
    return found


class DoAct(PageHandler):
    """`POST /jobs/ID/do`."""

    async def post(self, job_id: str) -> None:
        # Tornado's own: Flower's lets a password pass without a token.
        RequestHandler.check_xsrf_cookie(self)
        act = self.get_body_argument("act", "")
        if act not in ACTS:
            raise HTTPError(400, reason="act: expected one of " + ", ".join(ACTS))
        only = clean_line(self.get_body_argument("only", ""))[:MAX_CLASS]
        is_partial = self.get_body_argument("partial", "") == "1"
        log.info(
            "action=user_acted act=%s job_id=%s user=%s address=%s %s", act, job_id, user_of(self),
            self.request.remote_ip, f"only {only}" if only else "",
        )  # fmt: skip
        await self.told(self._do(act, job_id, only, is_partial=is_partial))

    async def _do(self, act: str, job_id: str, only: str, *, is_partial: bool) -> None:
        settings, redis = self.site.settings, self.site.redis
        asked = ""
        if act == "retry":
            asked = f"?asked={await self._ask_again(job_id, only, is_partial=is_partial)}"
        elif act == "cancel":
            compress = settings.performance_optimization.enable_result_compression
            await asyncio.to_thread(jobs.cancel, redis, job_id, compress=compress)
        else:
            do = control.pause if act == "pause" else control.resume
            await asyncio.to_thread(do, job_id, settings=settings, redis=redis)
        self.redirect(f"{self.root}/jobs/{job_id}{asked}", status=303)

    async def _ask_again(self, job_id: str, only: str, *, is_partial: bool) -> int:
        store = await self.site.store()
        row = await store.job(job_id)
        if row is None:
            raise JobNotFoundError(f"no job {job_id!r} in {store.place}")
        chosen = [one.destination async for one in store.failed(job_id, only or None)]
        if is_partial:
            chosen += [one.destination async for one in store.partial(job_id, only or None)]
        found = await candidates(store, row, chosen)
        return await asyncio.to_thread(
            ask_again, found, is_narrow=bool(only), settings=self.site.settings, redis=self.site.redis
        )


def user_of(handler: Any) -> str:
    """Who is logged in: the name of a password, or what an auth provider knows. The guard has checked it."""
    if handler.application.options.basic_auth:
        _, _, credentials = handler.request.headers.get("Authorization", "").partition(" ")
        return clean_line(b64decode(credentials).decode("utf-8", "replace")).partition(":")[0]
    return clean_line(str(handler.current_user))


def handlers(site: Site) -> list[tuple[str, type[PageHandler], dict[str, Any]]]:
    return [(r"/jobs/([A-Za-z0-9_.-]{1,100})/do", DoAct, {"site": site})]
