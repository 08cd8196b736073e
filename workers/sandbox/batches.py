"""Files and batches of the sandbox LLM, as OpenAI's protocol has them: `/v1/files` and `/v1/batches`.

Lines of a batch are answered evenly over `delay`, in an order of their own; what is answered is billed, also where the
batch expires or is cancelled before its end.
"""

import asyncio
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
from aiohttp import BodyPartReader, web

from workers.sandbox.batch import Asked, Batch, File, Habits, Line
from workers.sandbox.chat import Refusal, error_body

MAX_LINES: Final = 50_000
MAX_BYTES: Final = 200 * 1024 * 1024
ENDPOINT: Final = "/v1/chat/completions"
FINAL: Final = frozenset({"completed", "failed", "expired", "cancelled"})
#: Lines answered before others get a turn.
_SLICE: Final = 25
_LISTED, _LISTED_MOST = 20, 100


class Batches:
    """Keeps files and batches until it is closed. `answer` makes a completion of a request's body, and bills it.

    `check` refuses a request without the server's key.
    """

    def __init__(
        self, habits: Habits, answer: Callable[[bytes], dict[str, Any]], check: Callable[[web.Request], None]
    ) -> None:
        self.habits = habits
        self._answer = answer
        self._check = check
        #: Made with the first file.
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files: dict[str, File] = {}
        self._batches: dict[str, Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen = {"uploads": 0, "creates": 0}

    async def close(self) -> None:
        """End what is under way, and delete all files."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._folder is not None:
            self._folder.cleanup()

    def route(self, app: web.Application) -> None:
        if self.habits.is_off:
            return
        for method, path, handle in (
            ("POST", "/v1/files", self._upload),
            ("GET", "/v1/files", self._list_files),
            ("GET", "/v1/files/{id}", self._show_file),
            ("DELETE", "/v1/files/{id}", self._delete_file),
            ("GET", "/v1/files/{id}/content", self._content),
            ("POST", "/v1/batches", self._create),
            ("GET", "/v1/batches", self._list),
            ("GET", "/v1/batches/{id}", self._show),
            ("POST", "/v1/batches/{id}/cancel", self._cancel),
        ):
            app.router.add_route(method, path, handle)

    def stats(self) -> dict[str, int]:
        """How many files are kept, and batches in each state."""
        counts = {"files": len(self._files), "uploads": self._seen["uploads"], "batches": len(self._batches)}
        for batch in self._batches.values():
            counts[batch.status] = counts.get(batch.status, 0) + 1
        return counts

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        self._check(request)
        self._seen["uploads"] += 1
        if self._seen["uploads"] <= self.habits.busy_uploads:
            error = Refusal(429, "Too many uploads.", code="rate_limit_exceeded", kind="rate_limit_error")
            return web.json_response(error.body, status=429, headers={"Retry-After": "1"})
        file = File(self._new_id("file"), Path(), "", "")
        if not request.content_type.startswith("multipart/"):
            raise Refusal(400, "The request is no multipart/form-data.", code="invalid_request")
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader):
                continue
            if part.name == "file":
                file.name = part.filename or "file"
                file.path = await self._received(file.id, part)
            elif part.name == "purpose":
                file.purpose = await part.text()
        if not file.name or not file.purpose:
            raise Refusal(400, "Missing parameter: 'file' and 'purpose'.", code="missing_parameter")
        self._files[file.id] = file
        if self._seen["uploads"] <= self.habits.lost_uploads:
            _cut(request)
        return web.json_response(file.described())

    async def _received(self, id_: str, part: BodyPartReader) -> Path:
        path, size = self._path(id_), 0
        with path.open("wb") as kept:
            while chunk := await part.read_chunk(65_536):
                size += len(chunk)
                if size > MAX_BYTES:
                    raise Refusal(413, f"The file is larger than {MAX_BYTES} bytes.", code="file_too_large")
                kept.write(chunk)
        return path

    async def _list_files(self, request: web.Request) -> web.Response:
        self._check(request)
        purpose = request.query.get("purpose")
        files = [one for one in reversed(self._files.values()) if purpose in (None, one.purpose)]
        return _page(request, [one.described() for one in files])

    async def _show_file(self, request: web.Request) -> web.Response:
        return web.json_response(self._file_of(request).described())

    async def _delete_file(self, request: web.Request) -> web.Response:
        file = self._file_of(request)
        del self._files[file.id]
        file.path.unlink()
        return web.json_response({"id": file.id, "object": "file", "deleted": True})

    async def _content(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(self._file_of(request).path)

    async def _create(self, request: web.Request) -> web.Response:
        self._check(request)
        try:
            asked = msgspec.json.decode(await request.read(), type=Asked)
        except msgspec.DecodeError as exc:
            raise Refusal(400, f"The request could not be read: {exc}", code="invalid_request") from exc
        if asked.endpoint != ENDPOINT:
            raise Refusal(400, f"Invalid 'endpoint': expected '{ENDPOINT}'.", code="invalid_value")
        if asked.input_file_id not in self._files:
            raise Refusal(400, f"No such File object: {asked.input_file_id}", code="invalid_request")
        self._seen["creates"] += 1
        batch = Batch(self._new_id("batch"), asked)
        self._batches[batch.id] = batch
        task = asyncio.create_task(self._work(batch, self._files[asked.input_file_id].path))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._seen["creates"] <= self.habits.lost_creates:
            _cut(request)
        return web.json_response(batch.described(self.habits.window))

    async def _list(self, request: web.Request) -> web.Response:
        self._check(request)
        until = time.time() - self.habits.lag
        listed = [one for one in reversed(self._batches.values()) if one.at["created"] <= until]
        return _page(request, [one.described(self.habits.window) for one in listed])

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._batch_of(request).described(self.habits.window))

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self._batch_of(request)
        if batch.status in FINAL:
            raise Refusal(409, f"Cannot cancel a batch with status '{batch.status}'.", code="invalid_state")
        if batch.status != "cancelling":
            batch.enter("cancelling")
            batch.cancelled.set()
        return web.json_response(batch.described(self.habits.window))

    async def _work(self, batch: Batch, source: Path) -> None:
        """Answer the lines of a batch, and write its two files."""
        try:
            lines = _index(source)
        except Refusal as refusal:
            error = refusal.body["error"]
            batch.errors = [{"code": error["code"], "message": error["message"], "param": None, "line": None}]
            batch.enter("failed")
            return
        batch.total = len(lines)
        if batch.status == "validating":
            batch.enter("in_progress")
        answered = lines[: round(len(lines) * self.habits.share)]
        ended = time.monotonic() + self.habits.window
        output, errors = self._new_file("batch_output"), self._new_file("batch_output")
        with source.open("rb") as sent, output.path.open("wb") as answers, errors.path.open("wb") as refused:
            done = await self._answer_lines(batch, _read(sent, answered), len(answered), ended, (answers, refused))
            if done < len(lines) and not batch.cancelled.is_set():
                await _until(batch.cancelled, ended)
            why = "batch_cancelled" if batch.cancelled.is_set() else "batch_expired"
            for line in _read(sent, lines[done:]):
                refused.write(_result(line, None, {"code": why, "message": "This request was not executed."}))
        self._finish(batch, output, errors, "completed" if done == len(lines) else why.removeprefix("batch_"))

    async def _answer_lines(
        self, batch: Batch, lines: Iterator[Line], count: int, ended: float, results: tuple[BinaryIO, BinaryIO]
    ) -> int:
        """Answer lines until the end of the window; how many were. `results` take answers and errors."""
        for at in range(0, count, _SLICE):
            due = batch.at["created"] + self.habits.delay * min(at + _SLICE, count) / count
            await _until(batch.cancelled, min(ended, time.monotonic() + due - time.time()))
            if batch.cancelled.is_set() or time.monotonic() >= ended:
                return at
            for line in islice(lines, _SLICE):
                status, body = self._one(line)
                is_good = status == HTTPStatus.OK
                response = {"status_code": status, "request_id": f"req-{line.custom_id}", "body": body}
                results[0 if is_good else 1].write(_result(line, response, None))
                batch.completed += is_good
                batch.failed += not is_good
        return count

    def _one(self, line: Line) -> tuple[int, dict[str, Any]]:
        if _drawn(line.custom_id) < self.habits.line_errors:
            error = error_body("The server had an error.", kind="server_error", code="internal_error")
            return HTTPStatus.INTERNAL_SERVER_ERROR, error
        try:
            return HTTPStatus.OK, self._answer(bytes(line.body))
        except Refusal as refusal:
            return refusal.status, refusal.body

    def _finish(self, batch: Batch, output: File, errors: File, status: str) -> None:
        batch.enter("finalizing")
        for name, file in (("output_file_id", output), ("error_file_id", errors)):
            if file.path.stat().st_size:
                self._files[file.id] = file
                setattr(batch, name, file.id)
        batch.enter(status)

    def _new_file(self, purpose: str) -> File:
        id_ = self._new_id("file")
        path = self._path(id_)
        path.touch()
        return File(id_, path, f"{id_}.jsonl", purpose)

    def _path(self, id_: str) -> Path:
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="themes-sandbox-")
        return Path(self._folder.name) / id_

    def _new_id(self, kind: str) -> str:
        self._seen[kind] = self._seen.get(kind, 0) + 1
        return f"{kind}-sandbox-{self._seen[kind]}"

    def _file_of(self, request: web.Request) -> File:
        self._check(request)
        file = self._files.get(request.match_info["id"])
        if file is None:
            raise Refusal(404, f"No such File object: {request.match_info['id']}", code="not_found")
        return file

    def _batch_of(self, request: web.Request) -> Batch:
        self._check(request)
        batch = self._batches.get(request.match_info["id"])
        if batch is None:
            raise Refusal(404, f"No batch found with id '{request.match_info['id']}'.", code="not_found")
        return batch


def _index(path: Path) -> list[int]:
    """Where each line of an input file begins, in an order that is not the file's. Raises Refusal."""
    found: dict[str, int] = {}
    with path.open("rb") as sent:
        at = 0
        for number, text in enumerate(sent, 1):
            try:
                line = msgspec.json.decode(text, type=Line)
            except msgspec.DecodeError as exc:
                raise Refusal(400, f"Line {number} could not be read: {exc}", code="invalid_json_line") from exc
            if line.url != ENDPOINT or line.custom_id in found:
                raise Refusal(400, f"Line {number}: its url or its custom_id is wrong.", code="invalid_request")
            found[line.custom_id] = at
            at += len(text)
    if not 0 < len(found) <= MAX_LINES:
        raise Refusal(400, f"The file has {len(found)} lines, not 1 to {MAX_LINES}.", code="invalid_line_count")
    return [found[id_] for id_ in sorted(found, key=lambda id_: _drawn(f"order of {id_}"))]


def _read(sent: BinaryIO, places: Sequence[int]) -> Iterator[Line]:
    for place in places:
        sent.seek(place)
        yield msgspec.json.decode(sent.readline(), type=Line)


def _drawn(custom_id: str) -> float:
    """A number from 0 to 1, the same for a line whenever it is asked."""
    return int.from_bytes(hashlib.blake2b(custom_id.encode(), digest_size=4).digest(), "big") / 2**32


def _result(line: Line, response: dict[str, Any] | None, error: dict[str, str] | None) -> bytes:
    one = {"id": f"batch_req-{line.custom_id}", "custom_id": line.custom_id, "response": response, "error": error}
    return msgspec.json.encode(one) + b"\n"


def _page(request: web.Request, newest_first: list[dict[str, Any]]) -> web.Response:
    """A page of a list, after the object that the caller names."""
    ids = [one["id"] for one in newest_first]
    after, limit = request.query.get("after"), request.query.get("limit", str(_LISTED))
    if not (limit.isascii() and limit.isdecimal() and int(limit[:9]) > 0):
        raise Refusal(400, f"Invalid 'limit': expected a number from 1, got '{limit[:99]}'.", code="invalid_value")
    most = min(int(limit[:9]), _LISTED_MOST)
    begin = ids.index(after) + 1 if after in ids else 0
    page = newest_first[begin : begin + most]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    more = len(ids) > begin + most
    return web.json_response({"object": "list", "data": page, **ends, "has_more": more})


async def _until(event: asyncio.Event, deadline: float) -> None:
    """Wait until the event, or until this time of the monotonic clock."""
    try:
        await asyncio.wait_for(event.wait(), max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        return


def _cut(request: web.Request) -> None:
    """The caller gets no reply to what was done."""
    if request.transport is not None:
        request.transport.abort()
    raise ConnectionResetError("the reply is lost on purpose")
