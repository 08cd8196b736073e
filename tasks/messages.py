"""Frozen wire types: what travels from the producer to the workers and from the workers to the consumer.

Structs are msgspec's: typed, immutable, validated while decoding. On the wire they are msgpack behind one codec
byte (`pack`, `unpack`); events are JSON, because watchers in any language read them. Times are seconds since 1970, UTC.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from tasks.frames import WireError, packed, unpacked
from tasks.identity import OwnId, destination_id


class Addition(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is added to a profile that stands: the stages to ask, and category and name of each of its themes."""

    stages: tuple[str, ...]
    themes: tuple[tuple[str, str], ...]


class Destination(msgspec.Struct, frozen=True, omit_defaults=True):
    """One input row, with its names as they were written; `id` follows from the rule in `tasks.identity`."""

    id: str
    name: str
    country: str | None = None
    region: str | None = None
    lat: float | None = None
    lon: float | None = None
    extra: dict[str, str] = {}
    addition: Addition | None = None

    @classmethod
    def of(cls, name: str, country: str | None = None, *, own: OwnId | None = None, **more: Any) -> "Destination":
        """Make a destination from its name; `own` is an id that its row brought, `more` are the other fields."""
        region, lat, lon = more.get("region"), more.get("lat"), more.get("lon")
        id_ = destination_id(name, country, region, lat, lon, own=own)
        return cls(id=id_, name=name, country=country, **more)

    @property
    def label(self) -> str:
        """The name as people write it: "Kyoto, Japan"."""
        return f"{self.name}, {self.country}" if self.country else self.name


class Chunk(msgspec.Struct, frozen=True):
    """The destinations that one Celery message stands for. `attempt` counts earlier tries of the same rows."""

    job_id: str
    chunk_id: str
    destinations: tuple[Destination, ...]
    attempt: int = 0
    #: When it was queued first; 0 in messages of older versions.
    queued_at: float = 0.0


class JobOptions(msgspec.Struct, frozen=True):
    """What the user asked of a job beyond its destinations. `budget_usd` None: it may cost what it costs.

    `columns` of the input are shown to the model; `id_column` is the one that its user named. `is_in_process`: made by
    `themes run`, so that no worker knows it.
    """

    priority: int = 5
    use_cache: bool = True
    budget_usd: float | None = None
    is_in_process: bool = False
    columns: tuple[str, ...] = ()
    id_column: str | None = None
    #: The trace that its enqueuing began (tasks.tracing); empty where nothing is traced.
    trace: str = ""
    #: Of each profile only these (`workers.pipeline.fields`); empty: all.
    fields: tuple[str, ...] = ()
    #: At which service tier its calls are bought; empty: as the workers' settings say.
    tier: str = ""
    #: When calls of the tier flex become standard ones, in seconds since 1970.
    deadline_at: float | None = None
    #: Whose budget its calls are paid from too (`teams.budgets`); empty: no team's.
    team: str = ""

    @property
    def has_budget(self) -> bool:
        return self.budget_usd is not None or bool(self.team)


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What something cost, and what the cache did for it. US dollars are None where a model's price is not known."""

    llm_calls: int = 0
    cache_hits: int = 0
    coalesced: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: Calls whose tokens the server did not count: they are estimates, by length.
    estimated_calls: int = 0
    #: Of the hits, those that needed no look into Redis.
    memory_hits: int = 0
    cache_misses: int = 0
    cache_stores: int = 0
    cache_corrupt: int = 0
    #: Bytes of what was stored, before and after compression.
    bytes_raw: int = 0
    bytes_stored: int = 0
    #: What the hits had cost when they were made.
    saved_prompt_tokens: int = 0
    saved_completion_tokens: int = 0
    saved_usd: float | None = 0.0
    cost_usd: float | None = 0.0
    #: Of the prompt tokens, those that the provider's cache had, and those that were written into it.
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    #: Of the completion tokens.
    reasoning_tokens: int = 0
    #: What the calls cost by the price lists: `cost_usd` is another where a server says itself what it has charged.
    listed_usd: float | None = 0.0
    #: What the service tiers have saved against standard, by the price lists.
    tier_saved_usd: float | None = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        if self == _NOTHING:
            return other
        pairs = zip(msgspec.structs.astuple(self), msgspec.structs.astuple(other), strict=True)
        sums: list[Any] = [None if a is None or b is None else a + b for a, b in pairs]
        return Usage(*sums)


_NOTHING: Final = Usage()


class Seasonality(msgspec.Struct, frozen=True):
    """Month names in English, January to December."""

    peak: list[str]
    avoid: list[str]


class Theme(msgspec.Struct, frozen=True, omit_defaults=True):
    """One theme of a destination. None means: could not be had; `Profile.missing` says why.

    `more` holds the fields of stages that a user added.
    """

    id: str
    category: str
    name: str
    description: str
    citations: list[str]
    seasonality: Seasonality | None = None
    traveler_types: list[str] | None = None
    price_point: str | None = None
    confidence: float | None = None
    sub_themes: list[str] | None = None
    nano_themes: list[str] | None = None
    rationale: str | None = None
    unique_selling_points: list[str] | None = None
    authenticity_score: float | None = None
    more: dict[str, Any] = {}
    #: Whether each citation stands word for word in the evidence that was read; None where none was read.
    citations_supported: list[bool] | None = None


class Evidence(msgspec.Struct, frozen=True):
    """A page that was read before themes were asked for, or `reason`: why it could not be."""

    source: str
    url: str
    title: str = ""
    characters: int = 0
    fetched_at: float = 0.0
    reason: str | None = None


class Missing(msgspec.Struct, frozen=True):
    """What could not be had, and why. `themes` are the ids it concerns; empty means the whole profile."""

    stage: str
    field: str
    reason: str
    themes: list[str] = []


class StageRecord(msgspec.Struct, frozen=True):
    stage: str
    status: Literal["ok", "partial", "failed", "skipped"]
    prompt_version: str
    model: str | None
    source: Literal["called", "cached", "coalesced", "mixed", "none"]
    usage: Usage
    elapsed_ms: float
    reason: str | None = None


class OverlapAnalysis(msgspec.Struct, frozen=True):
    """Groups of theme ids that tell the same story (asked), and the ids outside every group (computed)."""

    overlapping_groups: list[list[str]]
    unique_themes: list[str]
    #: Pairs whose names are alike by string similarity, found without asking.
    similar_names: list[list[str]]


class QualityAssessment(msgspec.Struct, frozen=True):
    diversity: float
    coverage: float
    completeness: float
    quality: float | None = None
    overall: float | None = None
    recommendations: list[str] | None = None


class Profile(msgspec.Struct, frozen=True):
    """The assembled, validated result for one destination."""

    destination_id: str
    name: str
    country: str | None
    status: Literal["ok", "partial"]
    model: str
    pipeline_version: str
    themes: list[Theme]
    overlap_analysis: OverlapAnalysis | None
    quality_assessment: QualityAssessment
    missing: list[Missing]
    stages: list[StageRecord]
    usage: Usage
    elapsed_ms: float
    created_at: float
    extra: dict[str, str] = {}
    #: Answers of profile-wide stages that a user added, by field name.
    more: dict[str, Any] = {}
    #: What was read of the web; empty where nothing was to be.
    evidence: list[Evidence] = []

    def top_themes(self, count: int) -> list[str]:
        """The names of the themes with the highest confidence; unknown confidence comes last."""
        ranked = sorted(self.themes, key=lambda theme: -(theme.confidence or 0.0))
        return [theme.name for theme in ranked[:count]]


class PackedProfile(msgspec.Struct, frozen=True, omit_defaults=True):
    """A profile in packed form: what differs from run to run, and one frame (`tasks.packed`)."""

    name: str
    country: str | None
    status: Literal["ok", "partial"]
    model: str
    pipeline_version: str
    #: Its overall quality, 0-1; None where it could not be had.
    quality: float | None
    usage: Usage
    elapsed_ms: float
    created_at: float
    #: How many themes it has, and the names of the surest.
    theme_count: int
    best: list[str]
    #: JSON: how each stage was made, a list of lists.
    stages: str
    #: One zstd frame of JSON: the themes whole, and what was found about them together.
    body: bytes
    #: JSON: what could not be had, a list of lists; empty where nothing lacks.
    missing: str = ""
    #: How many stages lack something.
    lacking: int = 0
    extra: dict[str, str] = {}


class Failure(msgspec.Struct, frozen=True):
    stage: str
    error_class: str
    message: str
    attempts: int


class JobOpened(msgspec.Struct, frozen=True, tag="opened"):
    """First entry of a job on the results stream."""

    job_id: str
    name: str
    created_at: float
    options: JobOptions


class JobInputs(msgspec.Struct, frozen=True, tag="inputs"):
    """Destinations of a job, written before their chunk is published."""

    job_id: str
    destinations: tuple[Destination, ...]


class JobSealed(msgspec.Struct, frozen=True, tag="sealed"):
    """No more destinations follow. `total` counts them."""

    job_id: str
    total: int


class _Run(msgspec.Struct, frozen=True):
    job_id: str
    destination_id: str
    attempt: int
    usage: Usage
    worker: str
    at: float
    elapsed_ms: float


class Result(_Run, frozen=True, tag="result"):
    """The outcome for one destination: a profile or a failure, never both. The highest `attempt` wins."""

    profile: PackedProfile | None = None
    failure: Failure | None = None
    #: The trace of its destination (tasks.tracing); empty where nothing is traced.
    trace: str = ""
    #: Whether the profile has only what is added to the stored one.
    adds: bool = False


class Spent(_Run, frozen=True, tag="spent"):
    """What a destination has cost without coming to an end: its job was stopped, or another worker was faster.

    Its run is the one of a `Result` with the same attempt, worker and time: both together count once. `lost` says that
    its process died, and that others have booked what it left behind.
    """

    lost: bool = False


class JobClosed(msgspec.Struct, frozen=True, tag="closed"):
    job_id: str
    state: Literal["cancelled"]
    at: float


class JobReopened(msgspec.Struct, frozen=True, tag="reopened"):
    """These destinations are asked again, as `attempt`: failed and partial ones wait anew, whole ones are left alone.

    Written before the chunks of the retry are published, so that the job runs again until they have ended.
    """

    job_id: str
    destination_ids: tuple[str, ...]
    attempt: int
    #: Where fields are added: the job's options from now on; whole profiles wait too.
    options: JobOptions | None = None


#: What an entry of the results stream can be.
StreamEntry = JobOpened | JobInputs | JobSealed | JobClosed | JobReopened | Result | Spent

EventType = Literal[
    "job.started", "stage.done", "destination.done", "destination.failed", "job.progress", "job.waiting", "job.paused",
    "job.done",
]  # fmt: skip


class Event(msgspec.Struct, frozen=True):
    """One entry of a job's event stream. `id` is the stream's id: pass it back to resume after it."""

    type: EventType
    job_id: str
    destination_id: str | None = None
    id: str = ""
    at: float = msgspec.field(default_factory=time.time)
    data: dict[str, Any] = {}


def pack(value: msgspec.Struct | Sequence[Any] | Mapping[str, Any], *, compress: bool = True) -> bytes:
    """Encode as msgpack behind one codec byte, compressed with zstd when that is asked for and pays."""
    return packed(msgspec.msgpack.encode(value), compress=compress)


def unpack(data: bytes, type_: Any) -> Any:
    """Decode what `pack` made; the output's size is bounded before it is believed.

    Raises:
        WireError: foreign, corrupt or oversized bytes.
    """
    body = unpacked(data)
    try:
        return _decoder(type_).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise WireError(f"not a {type_}: {exc}") from exc


@functools.cache
def _decoder(type_: Any) -> msgspec.msgpack.Decoder[Any]:
    """Made once: looking through a union of types takes longer than decoding one."""
    return msgspec.msgpack.Decoder(type_)
