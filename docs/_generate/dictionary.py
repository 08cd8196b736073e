"""Trains the next dictionary of `workers/llm/cache/codec.py`, or tries the newest one on answers that it has not seen.

    .venv/bin/python docs/_generate/dictionary.py            how well the newest one does
    .venv/bin/python docs/_generate/dictionary.py --write    another version beside the old ones, which stay readable

The same sources give the same dictionary, byte for byte. They are the sandbox's answers to all stages about the demo's
and some other places, and the answers written by hand in `workers/llm/cache/dictionaries/samples.yaml`.
"""

import argparse
import asyncio
import base64
import statistics
import sys
import textwrap
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml
import zstandard

from config.settings import load
from tasks.inputs.reader import Reader
from tasks.messages import Destination
from workers.llm.cache import codec
from workers.llm.cache.tiers import CachedCompletion, PersistentLLMCache
from workers.llm.endpoints.pool import LLMConnectionPool
from workers.llm.generator import FocusedLLMGenerator
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.graph import Graph
from workers.pipeline.processor import FocusedPromptProcessor
from workers.pipeline.prompts import load_stages
from workers.sandbox.server import SandboxServer

ROOT: Final = Path(__file__).parents[2]
SAMPLES: Final = codec.DICTIONARIES / "samples.yaml"
#: Bytes of a dictionary, at most.
DICTIONARY_BYTES: Final = 42 * 1024
#: zstd's level that it is trained for.
TRAINED_LEVEL: Final = 6
#: Every answer written by hand counts as often as this many of the sandbox's.
BY_HAND_WEIGHT: Final = 40
#: Of the sandbox's answers about the demo's places every fourth is trained on, and of the others every sixteenth: they
#: are made from few wordings, and with all of them there would be no room for the hand-written ones.
EVERY: Final = (4, 16)
#: Places that neither the demo nor the sandbox's knowledge has.
OTHERS: Final = 60
HELD_OUT: Final = 20


class _Recording(PersistentLLMCache):
    """Keeps the bytes of what is stored."""

    def __init__(self) -> None:
        super().__init__(None, max_memory_mb=256, pressure_mb=65_536, ttl_days=1, compress=False)
        self.stored: list[bytes] = []

    def encode(self, completion: CachedCompletion) -> tuple[bytes, int]:
        self.stored.append(msgspec.msgpack.encode(completion))
        return super().encode(completion)


async def from_sandbox(places: list[Destination]) -> list[bytes]:
    """What a cache would hold of these places, before compression, in a fixed order."""
    profiler = PerformanceProfiler(enabled=False)
    async with SandboxServer(latency="0") as server:
        settings = load(env={"OPENAI_BASE_URL": server.base_url, "THEMES_MODEL": "sandbox"})
        async with LLMConnectionPool.of(settings, {"sandbox"}, profiler, None) as pool:
            cache = _Recording()
            generator = FocusedLLMGenerator(pool=pool, cache=cache, profiler=profiler, settings=settings)
            processor = FocusedPromptProcessor(Graph(load_stages()), generator, settings=settings, profiler=profiler)
            for place in places:
                await processor.process(place)
    return sorted(cache.stored)


def by_hand(part: str) -> list[bytes]:
    """The answers of one part of the samples, as a cache would hold them."""
    places: dict[str, dict[str, Any]] = yaml.safe_load(SAMPLES.read_text("utf-8"))[part]
    return [
        msgspec.msgpack.encode(CachedCompletion(value, "a-model-name", 480, len(msgspec.json.encode(value)) // 4))
        for stages in places.values()
        for value in stages.values()
    ]


def wordings() -> list[bytes]:
    """What travel answers of models are full of."""
    return [text.encode() for text in yaml.safe_load(SAMPLES.read_text("utf-8"))["wordings"]]


def train(samples: list[bytes]) -> bytes:
    """A dictionary of at most `DICTIONARY_BYTES`."""
    trained: bytes = zstandard.train_dictionary(DICTIONARY_BYTES, samples, level=TRAINED_LEVEL).as_bytes()
    return trained


def write(dictionary: bytes) -> Path:
    """Keep a dictionary as text, under the next version."""
    known = codec.versions()
    path = codec.DICTIONARIES / f"{known[-1] + 1 if known else 1}.b64"
    path.write_text("\n".join(textwrap.wrap(base64.b64encode(dictionary).decode(), 120)) + "\n", "ascii")
    return path


def tell(name: str, samples: list[bytes], pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]) -> None:
    """Print how small it gets, and in what time: medians of one value's microseconds."""
    packed = [pack(raw) for raw in samples]
    assert [unpack(one) for one in packed] == samples  # noqa: S101  # or the figures mean nothing
    ratio = sum(map(len, samples)) / sum(map(len, packed))
    times = {}
    for kind, work, values in (("in", pack, samples), ("out", unpack, packed)):
        rounds = []
        for _ in range(20):
            began = time.perf_counter()
            for value in values:
                work(value)
            rounds.append((time.perf_counter() - began) / len(values) * 1e6)
        times[kind] = statistics.median(rounds)
    print(f"  {name:20} {ratio:5.2f}x   {times['in']:6.1f} us in, {times['out']:6.1f} us out")  # noqa: T201


def main() -> None:
    """Train and write, or try."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    writes = parser.parse_args().write
    with Reader(ROOT / "config" / "destinations.csv") as reader:
        demo = list(reader)
    others = [Destination.of(f"Port Example {number}", f"Country {number % 17}") for number in range(OTHERS + HELD_OUT)]
    if writes:
        known, unknown = asyncio.run(from_sandbox(demo)), asyncio.run(from_sandbox(others[:OTHERS]))
        seen = known[:: EVERY[0]] + unknown[:: EVERY[1]]
        path = write(train([*seen, *(by_hand("train") + wordings()) * BY_HAND_WEIGHT]))
        print(f"wrote {path.name}, {path.stat().st_size} bytes as text", file=sys.stderr)  # noqa: T201
        codec._compressor.cache_clear()  # noqa: SLF001  # the new one is tried
    plain = zstandard.ZstdCompressor(level=codec.ZSTD_LEVEL)
    for title, samples in (
        ("answers written by hand, not trained on", by_hand("held_out")),
        ("the sandbox's, about places not trained on", asyncio.run(from_sandbox(others[OTHERS:]))),
    ):
        sizes = [len(raw) for raw in samples]
        print(f"{title}: {len(samples)}, {min(sizes)} to {max(sizes)} bytes")  # noqa: T201
        tell("zstd + dictionary", samples, lambda raw: codec.encode(raw, "zstd"), codec.decode)
        tell("zstd", samples, plain.compress, zstandard.decompress)
        tell("gzip -6", samples, lambda raw: codec.encode(raw, "gzip"), codec.decode)
        tell("zlib -6", samples, lambda raw: zlib.compress(raw, 6), zlib.decompress)


if __name__ == "__main__":
    main()
