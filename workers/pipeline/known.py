"""Profiles whose every prompt the cache would answer: one entry instead of a look-up and a stage for each prompt.

The entry is made of the completions that the profile was made of. It says of each stage what these had cost, so books
and provenance are the same as if each had been looked up.
"""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from config.settings import Settings
from tasks.frames import WireError, decompressed
from tasks.messages import Destination, PackedProfile, StageRecord, Usage
from tasks.packed import stages_json
from tasks.prices.rates import TokenCounts
from tasks.prices.table import PriceTable
from tasks.storable import clean_destination
from workers.llm.cache import codec
from workers.llm.cache.composites import Composites
from workers.llm.cache.tiers import PersistentLLMCache
from workers.llm.endpoints.prompt import KEY_VERSION, sampling_of
from workers.llm.endpoints.registry import model_for
from workers.observe.profiler import PerformanceProfiler
from workers.pipeline.assembly import StageOutcome
from workers.pipeline.prompts import Input, Stage

log = logging.getLogger("themes.cache")

#: Counts up when the meaning of an entry changes.
ENTRY_VERSION: Final = "2"

#: One completion: the model that gave it, tokens of its prompt and of itself, its key.
_Paid = tuple[str, int, int, bytes]


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    """A profile without what differs from run to run, names of its first themes, completions of each of its stages."""

    profile: PackedProfile
    names: list[str]
    paid: dict[str, list[_Paid]]


class Known(NamedTuple):
    profile: PackedProfile
    #: Of its first themes.
    names: list[str]


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Entry)


class KnownProfiles:
    def __init__(
        self,
        composites: Composites,
        cache: PersistentLLMCache,
        stages: Mapping[str, Stage],
        *,
        settings: Settings,
        profiler: PerformanceProfiler,
    ) -> None:
        self._composites = composites
        self._cache = cache
        self._stages = stages
        self._profiler = profiler
        self._prices = PriceTable(settings.llm)
        self._models = {name: model_for(settings.llm, name, stage.model) for name, stage in stages.items()}
        limits = settings.performance_optimization
        batch = limits.theme_batch_size if limits.enable_intelligent_batching else 0
        asked = [(stage.fingerprint, self._models[name]) for name, stage in stages.items()]
        self._set_up = msgspec.json.encode([ENTRY_VERSION, KEY_VERSION, sampling_of(settings.llm), batch, asked])

    def __repr__(self) -> str:
        return f"<KnownProfiles stages={len(self._stages)} {self._composites!r}>"

    def key(self, destination: Destination, columns: Sequence[str]) -> str:
        """A digest of all that changes any of the profile's prompts, the destination as its prompts' keys have it."""
        identity = Input.of(destination, columns=columns).identity
        return hashlib.sha256(self._set_up + identity.encode()).hexdigest()

    async def find(self, some: Sequence[Destination], columns: Sequence[str], version: str) -> list[Known | None]:
        """The profiles of some destinations, their hits counted; None where prompts must be looked up one by one."""
        keyed = [self.key(destination, columns) for destination in some]
        began = time.perf_counter()
        with self._profiler.span("cache.get"):
            stored = await self._composites.read(keyed)
        seconds = time.perf_counter() - began
        found: list[Known | None] = []
        for destination, key, (raw, is_in_memory) in zip(some, keyed, stored, strict=True):
            entry = self._entry(key, raw)
            known = None
            if entry is not None:
                known = self._profile(entry, destination, version, seconds, is_in_memory=is_in_memory)
            found.append(known)
        return found

    def _entry(self, key: str, stored: bytes | None) -> _Entry | None:
        """The entry, when it is a whole one of today's stages."""
        if stored is None:
            return None
        try:
            entry = _decoder.decode(codec.decode(stored))
            if not codec.has_checksum(stored):
                decompressed(entry.profile.body)
        except (codec.CodecError, WireError, msgspec.DecodeError, UnicodeDecodeError) as exc:
            log.warning("action=cache_corrupt profile=%s… its prompts are looked up: %s", key[:12], exc)
            self._cache.stats.corrupt += 1
            self._composites.discard(key)
            return None
        self._composites.remember(key, stored)
        return entry if entry.paid.keys() == self._stages.keys() and all(entry.paid.values()) else None

    def _profile(
        self,
        entry: _Entry,
        destination: Destination,
        version: str,
        seconds: float,
        *,
        is_in_memory: bool,
    ) -> Known:
        """The destination's own profile; `seconds` is how long the entry was read."""
        began = time.perf_counter()
        usages = {name: self._hits(name, paid, is_in_memory) for name, paid in entry.paid.items()}
        elapsed_ms = round((seconds + time.perf_counter() - began) * 1000, 1)
        stages = stages_json(self._record(name, entry.paid[name], usage, elapsed_ms) for name, usage in usages.items())
        own = clean_destination(destination)
        profile = msgspec.structs.replace(
            entry.profile,
            name=own.name,
            country=own.country,
            extra=own.extra,
            pipeline_version=version,
            stages=stages.decode(),
            usage=sum(usages.values(), Usage()),
            elapsed_ms=elapsed_ms,
            created_at=time.time(),
        )
        return Known(profile, entry.names)

    def forget(self, key: str) -> None:
        self._composites.discard(key)

    def keep(self, key: str, profile: PackedProfile, names: list[str], outcomes: Sequence[StageOutcome]) -> None:
        """Keep a profile for which every stage has had whole, cached answers, and no other; and its themes' names."""
        if profile.lacking or not all(one.is_whole for one in outcomes) or len(outcomes) != len(self._stages):
            return
        paid: dict[str, list[_Paid]] = {
            one.stage.name: [
                (each.model, each.prompt_tokens, each.completion_tokens, bytes.fromhex(each.key))
                for each in one.completions
            ]
            for one in outcomes
        }
        bare = msgspec.structs.replace(profile, stages="", usage=Usage(), extra={})
        raw = _encoder.encode(_Entry(bare, names, paid))
        self._composites.put(key, raw, [each.key for one in outcomes for each in one.completions])

    def _hits(self, name: str, paid: Sequence[_Paid], is_in_memory: bool) -> Usage:  # noqa: FBT001
        """What the stage's answers save; counted for the process as well.

        Those that memory has by themselves are hits there, as if they had been looked up.
        """
        stats, memory = self._cache.stats, self._cache.memory
        hits, in_memory, usd = len(paid), 0, 0.0
        is_priced = True
        for model, prompt_tokens, completion_tokens, key in paid:
            in_memory += is_in_memory or memory.get(key.hex()) is not None
            price = self._prices.usd(self._models[name], TokenCounts(prompt_tokens, completion_tokens), model)
            stats.save(prompt_tokens, completion_tokens, price)
            is_priced, usd = is_priced and price is not None, usd + (price or 0.0)
        stats.memory_hits += in_memory
        stats.redis_hits += hits - in_memory
        return Usage(
            cache_hits=hits,
            memory_hits=in_memory,
            saved_prompt_tokens=sum(each[1] for each in paid),
            saved_completion_tokens=sum(each[2] for each in paid),
            saved_usd=usd if is_priced else None,
        )

    def _record(self, name: str, paid: Sequence[_Paid], usage: Usage, elapsed_ms: float) -> StageRecord:
        return StageRecord(
            stage=name,
            status="ok",
            prompt_version=self._stages[name].version,
            model=paid[-1][0],
            source="cached",
            usage=usage,
            elapsed_ms=elapsed_ms,
        )
