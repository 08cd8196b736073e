"""One provider's files and batches over HTTP: each method is one request, or the pages of a list.

Retrying is the caller's. A request whose reply is lost may have been done: `find` and `find_file` tell.
"""

import asyncio
import contextlib
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
from msgspec.structs import replace
from yarl import URL

from config.sections import LlmSettings
from tasks.errors import (
    BadRequestError,
    BatchesUnsupportedError,
    EndpointAwayError,
    EndpointDownError,
    EndpointRefusedError,
    ThemesError,
)
from tasks.texts import one_line
from workers.llm.batches.batch import (
    TAG_NAME,
    ProviderBatch,
    created_at,
    read_batch,
    read_id,
    status_word,
    tag_of,
)
from workers.llm.batches.dialects import STATES, BatchDialect, dialect_of
from workers.llm.batches.lines import SLICE_BYTES, SLICE_LINES, LineEnd, LineReader
from workers.llm.batches.refusals import OTHER_TIER, refusal
from workers.llm.endpoints.bodies import PIECE_BYTES, bounded_body, unpacked_body
from workers.llm.endpoints.client import ChatClient
from workers.llm.endpoints.connections import Connections
from workers.llm.endpoints.error_body import ERROR_CHARACTERS, error_body, error_value
from workers.llm.endpoints.server_errors import NETWORK_ERRORS
from workers.llm.limits.headers import retry_after_seconds

log = logging.getLogger("themes.llm")

#: Objects on a page of a list, and pages after which a list has no end.
PAGE: Final = 100
MAX_PAGES: Final = 200
#: Seconds by which a provider's clock may differ from ours.
CLOCK_SECONDS: Final = 3600.0
#: States of files that cannot be used.
_BAD_FILES: Final = frozenset({"error", "failed", "deleted"})


class _Reply(msgspec.Struct, frozen=True):
    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def is_good(self) -> bool:
        return 200 <= self.status < 300  # noqa: PLR2004


class Provider:
    """The files and batches of one account.

    Every method raises as `ChatClient.complete` does, `EndpointDownError` also where an answer cannot be read, and
    `BatchesUnsupportedError`, `BatchQueueFullError` and `GoneError`.
    """

    def __init__(
        self,
        client: ChatClient,
        connections: Connections,
        settings: LlmSettings,
        dialect: BatchDialect | None = None,
    ) -> None:
        self.dialect = dialect or dialect_of(client.base_url)
        #: The `url` of every line of an input file.
        self.line_url = self.dialect.line_url
        self._model = client.model
        self._errors = client.errors
        self._session = connections.session
        self._root, self._query = self.dialect.root(client.base_url), connections.query
        self._timeout_seconds = settings.request_timeout_seconds
        self._max_bytes = settings.max_response_bytes
        #: What was warned of already.
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        return f"<Provider {self._errors.place} dialect={self.dialect.name}>"

    async def upload(self, path: Path, name: str) -> str:
        """Upload a file of requests under a name, and return its id; it is read from the disk as it is sent."""
        boundary = secrets.token_hex(16)
        head, tail = _envelope(boundary, self.dialect.purpose, _file_name(name))
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        with await asyncio.to_thread(_opened, path) as file:
            headers["Content-Length"] = str(len(head) + os.fstat(file.fileno()).st_size + len(tail))
            clock = asyncio.timeout(self._timeout_seconds)
            body = self._sent(head, file, tail, clock)
            reply = await self._send("POST", self.dialect.files_path, clock=clock, data=body, headers=headers)
        return self._id(self._read(reply, is_list=True), "file")

    async def _sent(self, head: bytes, file: BinaryIO, tail: bytes, clock: asyncio.Timeout) -> AsyncIterator[bytes]:
        """The body of an upload: each piece that the connection has taken gives it its full time again."""
        loop = asyncio.get_running_loop()
        yield head
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece
            # A server may answer before it has read everything; then the clock has stopped.
            with contextlib.suppress(RuntimeError):
                clock.reschedule(loop.time() + self._timeout_seconds)
        yield tail

    async def create(self, file_id: str, tag: str) -> ProviderBatch:
        """Begin a batch with the requests of a file. `tag` finds it again where the reply is lost."""
        dialect = self.dialect
        body: dict[str, Any] = {
            dialect.input_field: [file_id] if dialect.takes_many_inputs else file_id,
            "endpoint": dialect.endpoint,
            "metadata": {TAG_NAME: tag},
            **dialect.window,
        }
        if dialect.names_model:
            body["model"] = self._model
        reply = await self._send(
            "POST", dialect.batches_path, data=msgspec.json.encode(body), headers={"Idempotency-Key": tag}
        )
        batch = self._batch(self._read(reply, about=file_id, is_list=True), reply.headers)
        if batch.tag != tag:
            self._warn_once("its batches carry no metadata: one whose reply is lost cannot be found again")
        return batch

    async def status(self, batch_id: str) -> ProviderBatch:
        reply = await self._send("GET", f"{self.dialect.batches_path}/{batch_id}")
        return self._batch(self._read(reply, about=batch_id), reply.headers)

    async def find(self, tag: str, *, since: float) -> list[ProviderBatch]:
        """Every listed batch with this tag that may have been made after `since` (seconds since 1970)."""
        listed = self._listed(self.dialect.batches_path, since, {})
        return [self._batch(one, {}) async for one in listed if tag_of(one) == tag]

    async def find_file(self, name: str, *, since: float = 0.0) -> str | None:
        """The id of the newest file that was uploaded under this name, after `since` where that is given."""
        name = _file_name(name)
        more = {"purpose": self.dialect.purpose, **self.dialect.files_query}
        async with contextlib.aclosing(self._listed(self.dialect.files_path, since, more)) as listed:
            async for one in listed:
                if one.get("filename") == name and str(one.get("status")).lower() not in _BAD_FILES:
                    return self._id(one, "file")
        return None

    async def cancel(self, batch_id: str) -> ProviderBatch:
        """Ask for a batch's end. One that has ended already stays as it is."""
        reply = await self._send("POST", f"{self.dialect.batches_path}/{batch_id}/cancel")
        try:
            return self._batch(self._read(reply, about=batch_id), reply.headers)
        except (EndpointAwayError, EndpointRefusedError):
            raise
        except (EndpointDownError, BadRequestError):
            batch = await self.status(batch_id)
            if batch.state == "running" and not reply.is_good:
                raise
            return batch

    async def delete(self, file_id: str) -> bool:
        """Delete a file; whether there was one."""
        reply = await self._send("DELETE", f"{self.dialect.files_path}/{file_id}")
        if reply.status in {404, 410}:
            return False
        self._refuse(reply, about=file_id)
        return True

    async def lines(self, file_id: str, *, skip: int = 0) -> AsyncGenerator[list[LineEnd], None]:
        """What a file of results says, in slices, without its first `skip` ends.

        A line that cannot be read is passed over with a warning. After an error the caller begins anew.
        """
        reader = LineReader(self._max_bytes)
        slice_: list[LineEnd] = []
        size = 0
        try:
            async with contextlib.aclosing(self._ends(file_id, reader)) as ends:
                async for end, line_bytes in ends:
                    if reader.read <= skip:
                        continue
                    slice_.append(end)
                    size += line_bytes
                    if len(slice_) >= SLICE_LINES or size >= SLICE_BYTES:
                        yield slice_
                        slice_, size = [], 0
            if slice_:
                yield slice_
        except NETWORK_ERRORS as exc:
            raise self._errors.of_network(exc) from exc
        finally:
            if reader.unreadable or reader.too_long:
                log.warning(
                    "action=batch_lines_skipped endpoint=%s file=%s %d lines cannot be read, %d are longer than"
                    " llm.max_response_bytes",
                    self._errors.place, file_id, reader.unreadable, reader.too_long,
                )  # fmt: skip

    async def _ends(self, file_id: str, reader: LineReader) -> AsyncGenerator[tuple[LineEnd, int], None]:
        path = f"{self.dialect.files_path}/{file_id}/content"
        async with asyncio.timeout(self._timeout_seconds):
            response = await self._session.get(self._url(path), allow_redirects=False)
        async with response:
            if response.status != 200:  # noqa: PLR2004
                async with asyncio.timeout(self._timeout_seconds):
                    raw = await bounded_body(response, self._max_bytes)
                raise self._error(_Reply(response.status, response.headers, raw), about=file_id, is_list=False)
            async for piece in unpacked_body(response, self._timeout_seconds):
                for end, size in reader.feed(piece):
                    yield self._without_secret(end), size
            unreadable = reader.unreadable
            last = reader.last()
            if last is not None:
                yield self._without_secret(last), 0
            is_bounded = "Content-Length" in response.headers or "Transfer-Encoding" in response.headers
        if reader.unreadable > unreadable and not is_bounded:
            raise EndpointDownError(f"{self._errors.place}: the file {file_id} broke off in the middle of a line")
        if reader.unreadable and not reader.read:
            raise EndpointDownError(f"{self._errors.place}: no line of the file {file_id} can be read")

    def _without_secret(self, end: LineEnd) -> LineEnd:
        return replace(end, error=self._errors.without_secret(end.error)) if end.error else end

    async def _listed(self, path: str, since: float, more: Mapping[str, str]) -> AsyncGenerator[dict[str, Any], None]:
        """The objects of a list, the newest first, until all of a page are older than `since`."""
        seen: set[str] = set()
        last = ""
        for page in range(MAX_PAGES):
            query = {self.dialect.page_size_parameter: str(PAGE), **more}
            if self.dialect.page_parameter:
                query[self.dialect.page_parameter] = str(page)
            elif last:
                query["after"] = last
            data = self._read(await self._send("GET", path, query=query), is_list=True)
            new = [one for one in self._objects(data) if one["id"] not in seen]
            for one in new:
                yield one
            if not new or (isinstance(data, dict) and data.get("has_more") is False) or _is_past(new, since):
                return
            seen.update(one["id"] for one in new)
            last = new[-1]["id"]
        raise EndpointDownError(f"{self._errors.place}: its list of {path} does not end after {MAX_PAGES} pages")

    def _objects(self, data: Any) -> list[dict[str, Any]]:
        listed = data.get("data") if isinstance(data, dict) else data
        if not isinstance(listed, list):
            raise EndpointDownError(f"{self._errors.place}: the answer is no list")
        return [one for one in listed if isinstance(one, dict) and isinstance(one.get("id"), str)]

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        clock: asyncio.Timeout | None = None,
        **more: Any,
    ) -> _Reply:
        if self.dialect.refusal:
            raise BatchesUnsupportedError(f"{self._errors.place}: {self.dialect.refusal}: {OTHER_TIER}")
        url = self._url(path).update_query(query or {})
        try:
            async with (
                clock or asyncio.timeout(self._timeout_seconds),
                self._session.request(method, url, allow_redirects=False, **more) as response,
            ):
                raw = await bounded_body(response, self._max_bytes)
        except NETWORK_ERRORS as exc:
            raise self._errors.of_network(exc) from exc
        return _Reply(response.status, response.headers, raw)

    def _url(self, path: str) -> URL:
        return URL(f"{self._root}/{path}?{self._query}" if self._query else f"{self._root}/{path}")

    def _read(self, reply: _Reply, *, about: str = "", is_list: bool = False) -> Any:
        """The JSON of a reply. `about` is the object that was asked about, `is_list` that the path names none."""
        self._refuse(reply, about=about, is_list=is_list)
        try:
            data = msgspec.json.decode(reply.raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            shown = one_line(reply.raw[: 4 * ERROR_CHARACTERS].decode("utf-8", "replace"), 80)
            raise EndpointDownError(
                f"{self._errors.place}: status {reply.status}, but no JSON: {self._errors.without_secret(shown)!r}"
            ) from exc
        if isinstance(data, dict) and data.get("error") and "id" not in data and "data" not in data:
            # Some servers report every error under status 200.
            status = error_value(data).number or 400
            raise self._error(replace(reply, status=status), about=about, is_list=is_list)
        return data

    def _refuse(self, reply: _Reply, *, about: str = "", is_list: bool = False) -> None:
        if not reply.is_good:
            raise self._error(reply, about=about, is_list=is_list)

    def _error(self, reply: _Reply, *, about: str, is_list: bool) -> ThemesError:
        error = error_body(reply.raw)
        return refusal(self._errors, reply.status, reply.headers, error, about=about, is_list=is_list)

    def _batch(self, data: Any, headers: Mapping[str, str]) -> ProviderBatch:
        place = self._errors.place
        try:
            wait = retry_after_seconds(headers, now=time.time(), endpoint=place)
            batch = read_batch(data, self.dialect, retry_after_seconds=wait)
        except EndpointDownError as exc:
            raise EndpointDownError(f"{place}: {exc}") from exc
        if (word := status_word(data)) not in STATES:
            self._warn_once(f"the state {word!r} of a batch is not known, and taken for running")
        return replace(batch, said=self._errors.without_secret(batch.said))

    def _id(self, data: Any, what: str) -> str:
        try:
            return read_id(data, what)
        except EndpointDownError as exc:
            raise EndpointDownError(f"{self._errors.place}: {exc}") from exc

    def _warn_once(self, said: str) -> None:
        if said not in self._warned:
            self._warned.add(said)
            log.warning("action=batch_unclear endpoint=%s %s", self._errors.place, said)


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")


def _file_name(name: str) -> str:
    """A name as it can stand in a form's header."""
    return re.sub(r'[\x00-\x1f"\\]', "_", name)


def _envelope(boundary: str, purpose: str, name: str) -> tuple[bytes, bytes]:
    """What stands before and after a file in a form (RFC 7578)."""
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    return head.encode(), f"\r\n--{boundary}--\r\n".encode()


def _is_past(page: list[dict[str, Any]], since: float) -> bool:
    """Whether nothing on later pages can be as new as `since`; a time that is not told is none."""
    times = [created_at(one) for one in page]
    return min(times) > 0 and max(times) < since - CLOCK_SECONDS and times[0] == max(times)
