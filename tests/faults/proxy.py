"""A TCP proxy in front of Redis or the LLM, in a process of its own: it can be cut, frozen, and fail one exact command.

A door is a port with an upstream behind it; each role of a stack has its own. `Proxy` starts the process and talks to
it over its standard input and output, one line of JSON each way. The process ends with its parent.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

import psutil

from tests.faults.wire import Frame, Http, Resp, Wire

CHUNK = 1 << 16


class Mode(StrEnum):
    """How one command fails."""

    LOST_BEFORE = "connection lost before"
    LOST_AFTER = "connection lost after"
    REFUSED = "refused"
    KILLED_BEFORE = "killed before"
    KILLED_AFTER = "killed after"

    @property
    def is_after(self) -> bool:
        """Whether the command takes effect first."""
        return self in {Mode.LOST_AFTER, Mode.KILLED_AFTER}

    @property
    def kills(self) -> bool:
        """Whether the process that sent the command dies."""
        return self in {Mode.KILLED_BEFORE, Mode.KILLED_AFTER}


@dataclass
class Trap:
    """What fails: the `nth` (from 1) of the commands that fit, and with `again` each later one.

    With `reply_bytes`, only commands count whose reply has as many; they can only fail after it came.
    """

    mode: Mode
    nth: int = 1
    commands: list[str] = field(default_factory=list)
    containing: str = ""
    reply_bytes: int = 0
    again: bool = False
    seen: int = 0

    def fits(self, frame: Frame) -> bool:
        """Whether this command counts."""
        return (not self.commands or frame.name in self.commands) and self.containing.encode() in frame.raw

    def springs(self) -> bool:
        """Count one; whether it is the one."""
        self.seen += 1
        return self.seen == self.nth or (self.again and self.seen > self.nth)


@dataclass
class Door:
    """A listening port, and what happens to those who come in."""

    upstream: int
    wire: Wire
    server: asyncio.Server | None = None
    links: set["Link"] = field(default_factory=set)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    refuses: bool = False
    trap: Trap | None = None
    commands: Counter[str] = field(default_factory=Counter)
    sprung: list[str] = field(default_factory=list)

    def judge(self, frame: Frame) -> Mode | None:
        """Count a command; how it fails, if it does."""
        self.commands[frame.name] += 1
        trap = self.trap
        if trap is None or trap.reply_bytes or not trap.fits(frame):
            return None
        return self._sprung(trap, frame)

    def judge_reply(self, asked: Frame, reply: Frame) -> Mode | None:
        """The same, where the reply decides."""
        trap = self.trap
        if trap is None or not trap.reply_bytes or len(reply.raw) < trap.reply_bytes or not trap.fits(asked):
            return None
        return self._sprung(trap, asked)

    def _sprung(self, trap: Trap, frame: Frame) -> Mode | None:
        if not trap.springs():
            return None
        self.sprung.append(frame.name)
        if not trap.again:
            self.trap = None
        return trap.mode


class Link:
    """One connection through a door."""

    def __init__(self, door: Door, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.door, self.client, self.server = door, client, server
        #: Commands without a reply so far: the command, how it fails, and what the caller is told instead.
        self.pending: deque[tuple[Frame, Mode | None, bytes]] = deque()

    def cut(self) -> None:
        """End both sides at once."""
        for writer in (self.client, self.server):
            writer.transport.abort()

    @property
    def is_cut(self) -> bool:
        """Whether one side has ended."""
        return self.client.is_closing() or self.server.is_closing()

    async def up(self, reader: asyncio.StreamReader) -> None:
        """From the client to the server."""
        buffer = bytearray()
        while data := await reader.read(CHUNK):
            await self.door.open.wait()
            if self.is_cut:
                return
            buffer += data
            for frame in self.door.wire.commands(buffer):
                if not await self._command(frame):
                    return
            await self.server.drain()

    async def _command(self, frame: Frame) -> bool:
        mode = self.door.judge(frame)
        refusal = self.door.wire.refusal(frame.name) if mode is Mode.REFUSED else None
        if mode is None or mode.is_after or (mode is Mode.REFUSED and refusal is None):
            self.pending.append((frame, mode, b""))
            self.server.write(frame.raw)
        elif refusal and refusal.sent:
            self.pending.append((frame, mode, refusal.told))
            self.server.write(refusal.sent)
        elif refusal:
            self.client.write(refusal.told)
        else:
            await self._fail(mode)
            return False
        return True

    async def down(self, reader: asyncio.StreamReader) -> None:
        """From the server to the client."""
        buffer = bytearray()
        while data := await reader.read(CHUNK):
            await self.door.open.wait()
            if self.is_cut:
                return
            buffer += data
            for frame in self.door.wire.replies(buffer):
                if not await self._reply(frame):
                    return
            await self.client.drain()

    async def _reply(self, frame: Frame) -> bool:
        asked, mode, told = self.pending.popleft() if self.pending and not frame.is_out_of_turn else (None, None, b"")
        if asked and mode is None:
            mode = self.door.judge_reply(asked, frame)
        if mode and (mode.is_after or (not told and mode is not Mode.REFUSED)):
            await self._fail(mode)
            return False
        self.client.write(told or frame.raw)
        return True

    async def _fail(self, mode: Mode) -> None:
        if mode.kills:
            there, here = self.client.get_extra_info("peername"), self.client.get_extra_info("sockname")
            with contextlib.suppress(ProcessLookupError):
                os.kill(await asyncio.to_thread(_owner, there[1], here[1]), signal.SIGKILL)
        self.cut()


def _owner(port: int, door: int) -> int:
    """Who has the connection from this port to that door. (Many processes may share the one port, for other places.)"""
    for one in psutil.net_connections("tcp4"):
        if one.pid and one.raddr and (one.laddr[1], one.raddr[1]) == (port, door):
            return int(one.pid)
    raise ProcessLookupError(f"nobody has a connection from port {port} to {door}")


class Doors:
    """The proxy's process: all doors, and the orders that it takes."""

    def __init__(self) -> None:
        self.doors: dict[str, Door] = {}
        #: asyncio itself keeps no hold of a task that waits.
        self._visits: set[asyncio.Task[None] | None] = set()

    async def listen(self, name: str, upstream: int, protocol: str = "redis") -> int:
        """Open a door; returns its port."""
        door = Door(upstream, Resp() if protocol == "redis" else Http())
        door.open.set()

        async def come_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            visit = asyncio.current_task()
            self._visits.add(visit)
            try:
                await self._through(door, reader, writer)
            finally:
                self._visits.discard(visit)

        door.server = await asyncio.start_server(come_in, "127.0.0.1", 0, limit=1 << 20, backlog=512)
        self.doors[name] = door
        return int(door.server.sockets[0].getsockname()[1])

    async def _through(self, door: Door, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await door.open.wait()
            if door.refuses:
                return
            there, server = await asyncio.open_connection("127.0.0.1", door.upstream, limit=1 << 20)
            link = Link(door, writer, server)
            door.links.add(link)
            ways = [asyncio.create_task(link.up(reader)), asyncio.create_task(link.down(there))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            link.cut()
            await asyncio.gather(*ways, return_exceptions=True)
            door.links.discard(link)
        except OSError:
            # Nobody is there: the caller sees a connection that closes at once.
            pass
        finally:
            writer.transport.abort()

    async def cut(self, name: str) -> int:
        """End every connection; returns how many there were."""
        links = list(self.doors[name].links)
        for link in links:
            link.cut()
        return len(links)

    async def refuse(self, name: str, on: bool) -> None:
        """Let nobody in any more, or again."""
        self.doors[name].refuses = on
        if on:
            await self.cut(name)

    async def freeze(self, name: str, on: bool) -> None:
        """Let nothing through any more, either way, or again: connections stay open."""
        if on:
            self.doors[name].open.clear()
        else:
            self.doors[name].open.set()

    async def arm(self, name: str, **trap: Any) -> None:
        """Set a trap, or none without any option; counts begin anew."""
        door = self.doors[name]
        door.trap = Trap(**(trap | {"mode": Mode(trap["mode"])})) if trap else None
        door.commands, door.sprung = Counter(), []

    async def counts(self, name: str) -> dict[str, Any]:
        """Commands since the trap was set, and those that it caught."""
        return {"commands": self.doors[name].commands, "sprung": self.doors[name].sprung}

    async def serve(self) -> None:
        """Take orders until the input ends."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            order, name, options = json.loads(line)
            answer = await getattr(self, order)(name, **options)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


class Proxy:
    """The proxy as tests use it."""

    def __enter__(self) -> Self:
        # Its input ends when we do, and it with its input.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.proxy"],
            stdout=subprocess.PIPE, stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(180)
        self._process.stdout.close()

    def _ask(self, order: str, name: str, **options: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([order, name, options]).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def listen(self, name: str, upstream: int, protocol: str = "redis") -> int:
        """Open a door to a port; returns its own."""
        return int(self._ask("listen", name, upstream=upstream, protocol=protocol))

    def cut(self, name: str) -> int:
        """End every connection through a door."""
        return int(self._ask("cut", name))

    def refuse(self, name: str, *, on: bool) -> None:
        """Close a door, or open it again."""
        self._ask("refuse", name, on=on)

    def freeze(self, name: str, *, on: bool) -> None:
        """Let nothing through a door, or let it go on."""
        self._ask("freeze", name, on=on)

    def arm(self, name: str, **trap: Any) -> None:
        """Set a `Trap`, and count from now on; without options none."""
        self._ask("arm", name, **trap)

    def commands(self, name: str) -> int:
        """Commands since a trap was set."""
        return sum(self.by_name(name).values())

    def by_name(self, name: str) -> dict[str, int]:
        """How many of each command."""
        return dict(self._ask("counts", name)["commands"])

    def sprung(self, name: str) -> list[str]:
        """Commands that the trap has caught."""
        return list(self._ask("counts", name)["sprung"])


if __name__ == "__main__":
    asyncio.run(Doors().serve())
