"""Network namespaces as hosts, with wires between them that delay and lose packets and can be cut.

A thread carries the packets: each host has a TUN device, and its packets go to the host whose address they are for. So
the kernel needs no netem. The namespaces have no names and end with this process and those that run in them.
"""

import contextlib
import ctypes
import heapq
import itertools
import os
import random
import select
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path
from struct import pack
from typing import Final, TypeVar

T = TypeVar("T")

NETWORK: Final = "10.77.0."
_NEW_NETWORK: Final = 0x40000000  # CLONE_NEWNET
_NEW_NAME: Final = 0x04000000  # CLONE_NEWUTS
_SET_DEVICE: Final = 0x400454CA  # TUNSETIFF
_PACKETS: Final = 0x1001  # IFF_TUN | IFF_NO_PI
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
#: Where in an IPv4 packet the address is that it is for.
_TARGET: Final = slice(16, 20)


def why_not() -> str:
    """Why this process cannot make such hosts; empty: it can."""
    command = ["unshare", "--net", "ip", "tuntap", "add", "dev", "probe", "mode", "tun"]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as exc:
        return f"needs {exc.filename} (util-linux)"
    return f"needs root, iproute2 and /dev/net/tun: {tried.stderr.strip()}" if tried.returncode else ""


def _checked(code: int) -> None:
    if code:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def enter(namespace: str) -> None:
    """Move this thread into a network namespace."""
    handle = os.open(namespace, os.O_RDONLY)
    try:
        _checked(_LIBC.setns(handle, _NEW_NETWORK))
    finally:
        os.close(handle)


def become_host(namespace: str, name: str) -> None:
    """Move this process into a host's network, and give it the host's name."""
    enter(namespace)
    _checked(_LIBC.unshare(_NEW_NAME))
    _checked(_LIBC.sethostname(name.encode(), len(name)))


@dataclass
class Host:
    """A host: its name, its address, and the file of its network namespace."""

    name: str
    address: str
    namespace: str
    device: int

    def do(self, what: Callable[[], T]) -> T:
        """Call `what` as a process of this host would."""
        with ThreadPoolExecutor(1, initializer=enter, initargs=(self.namespace,)) as pool:
            return pool.submit(what).result()

    def listening(self) -> set[str]:
        """Addresses and ports that are listened on, TCP and UDP."""
        command = ["ss", "-H", "-ltun"]
        said = self.do(lambda: subprocess.run(command, capture_output=True, text=True, check=True)).stdout
        return {f"{line.split()[0]} {line.split()[4]}" for line in said.splitlines()}

    def forget(self, *others: "Host") -> None:
        """Drop the connections with other hosts, as the kernel does when these have been silent for long enough."""
        for other in others:
            command = ["ss", "-K", "dst", other.address]
            self.do(lambda command=command: subprocess.run(command, capture_output=True, check=True))


@dataclass
class Wires:
    """What happens to packets between hosts."""

    #: Seconds from host to host, and by how much they vary.
    delay_seconds: float
    jitter_seconds: float
    #: The part of all packets that is lost.
    loss: float
    #: Pairs of hosts between which nothing passes.
    cut: set[frozenset[str]] = field(default_factory=set)
    carried: int = 0
    lost: int = 0
    _random: random.Random = field(default_factory=lambda: random.Random(1))

    def apart(self, one: str, *others: str) -> None:
        """Let nothing pass between a host and others, from the next packet on."""
        self.cut |= {frozenset((one, other)) for other in others}

    def heal(self, one: str) -> None:
        """Let a host's packets pass again."""
        self.cut = {pair for pair in self.cut if one not in pair}

    def arrives(self, source: str, target: str) -> float | None:
        """Seconds after which a packet arrives; None: never."""
        if frozenset((source, target)) in self.cut or self._random.random() < self.loss:
            self.lost += 1
            return None
        self.carried += 1
        return self.delay_seconds + self._random.uniform(-self.jitter_seconds, self.jitter_seconds)


@contextlib.contextmanager
def hosts(wires: Wires, *names: str) -> Iterator[dict[str, Host]]:
    """Make hosts, and carry their packets within the body."""
    stop = os.eventfd(0)
    with ThreadPoolExecutor(1, thread_name_prefix="wires") as pool:
        made: dict[str, Host] = {}
        try:
            for number, name in enumerate(names, 2):
                made[name] = pool.submit(_host, name, f"{NETWORK}{number}").result()
            carrying = pool.submit(_carry, wires, made, stop)
            try:
                yield made
            finally:
                os.eventfd_write(stop, 1)
                carrying.result()
        finally:
            for host in made.values():
                os.close(host.device)
                os.close(int(Path(host.namespace).name))
            os.close(stop)


def _host(name: str, address: str) -> Host:
    """Make a host, and leave this thread in its namespace."""
    _checked(_LIBC.unshare(_NEW_NETWORK))
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    ioctl(device, _SET_DEVICE, pack("16sH22x", b"eth0", _PACKETS))
    words = f"link set lo up\naddress add {address}/24 dev eth0\nlink set eth0 up\n"
    subprocess.run(["ip", "-batch", "-"], input=words, text=True, check=True)
    namespace = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
    return Host(name, address, f"/proc/{os.getpid()}/fd/{namespace}", device)


def _carry(wires: Wires, made: dict[str, Host], stop: int) -> None:
    """Carry packets in the order in which each host sent them to another, until `stop` is set."""
    of_address = {bytes(map(int, host.address.split("."))): host for host in made.values()}
    of_device = {host.device: host for host in made.values()}
    order, under_way = itertools.count(), list[tuple[float, int, int, bytes]]()
    last: dict[tuple[str, str], float] = {}
    poll = select.poll()
    for handle in (stop, *of_device):
        poll.register(handle, select.POLLIN)
    while True:
        wait = None if not under_way else max(0.0, under_way[0][0] - time.monotonic()) * 1000
        ready = [handle for handle, _ in poll.poll(wait)]
        if stop in ready:
            return
        for handle in ready:
            source, packets = of_device[handle], _read(handle)
            now = time.monotonic()
            for packet in packets:
                target = of_address.get(packet[_TARGET])
                # What is no IPv4, or for nobody, goes nowhere.
                if packet[0] >> 4 != 4 or target is None:
                    continue
                seconds = wires.arrives(source.name, target.name)
                if seconds is not None:
                    pair = source.name, target.name
                    due = last[pair] = max(last.get(pair, 0.0), now + seconds)
                    heapq.heappush(under_way, (due, next(order), target.device, packet))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, device, packet = heapq.heappop(under_way)
            os.write(device, packet)


def _read(device: int) -> deque[bytes]:
    """What a host has sent by now."""
    packets = deque[bytes]()
    with contextlib.suppress(BlockingIOError):
        while len(packets) < 64:
            packets.append(os.read(device, 1 << 16))
    return packets
