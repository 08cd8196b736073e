"""The prompt files: one stage each, front matter above, fixed instructions below.

    ---
    stage: analyse.price            the stage's name, also the file's
    asks: each theme                new themes | each theme | all themes
    needs: [discover.*]             stages whose outcome it waits for; a pattern or a name
    max_tokens: 1000                for the answer
    fields:                         JSON Schema of what it adds (a theme's number is {theme: id})
      price_point: {type: string, enum: [budget, mid, luxury]}
    count: [4, 6]                   only with `asks: new themes`: how many, and no fields
    ---
    For each numbered theme of the destination below …

Editing a text or adding a file needs no Python. A changed text or schema changes the stage's version, so only that
stage is asked again; the others come from the cache.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec
import yaml

from config.settings import Settings
from tasks.errors import ConfigError
from tasks.identity import normalise, title_key
from tasks.messages import Destination, Theme
from tasks.packed import VERSION_DIGITS, version_of
from workers.llm.endpoints.answers import AnswerSchema
from workers.llm.endpoints.prompt import Prompt
from workers.pipeline import schemas

BUILT_IN: Final = Path(__file__).with_name("prompts")
#: The file that every prompt begins with.
SYSTEM: Final = "system.md"
#: What is added to prompts that find themes where the web is read first.
EVIDENCE: Final = "evidence.md"

Asks = Literal["new themes", "each theme", "all themes"]


@dataclass(frozen=True)
class Stage:
    name: str
    asks: Asks
    needs: tuple[str, ...]
    max_tokens: int
    #: A role of `llm.roles` or a model; None: the role is the name's part before the dot.
    model: str | None
    instructions: str
    system: str
    fields: dict[str, Any] = field(default_factory=dict)
    count: tuple[int, int] = (0, 0)

    @property
    def category(self) -> str:
        return self.name.rpartition(".")[2]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of everything in the file that changes the answer: system, instructions, fields, counts."""
        parts = [self.name, self.asks, self.instructions, self.system, self.fields, self.count]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

    @property
    def version(self) -> str:
        return self.fingerprint[:VERSION_DIGITS]

    @cached_property
    def _schemas(self) -> dict[int, AnswerSchema]:
        return {}

    def schema(self, count: int) -> AnswerSchema:
        if count not in self._schemas:
            name = self.name.replace(".", "_")
            if self.asks == "new themes":
                made = schemas.new_themes(name, *self.count)
            elif self.asks == "each theme":
                made = schemas.each_theme(name, self.fields, count)
            else:
                made = schemas.all_themes(name, self.fields, count)
            self._schemas[count] = made
        return self._schemas[count]

    def prompt(self, about: "Input") -> Prompt:
        return Prompt(
            stage=self.name,
            version=self.fingerprint,
            system=self.system,
            instructions=self.instructions,
            data=about.data,
            identity=about.identity,
            schema=self.schema(about.count),
            max_tokens=self.max_tokens,
            model=self.model,
        )


@dataclass(frozen=True, slots=True)
class Input:
    """What the prompts of one round have in common: a destination and, in their order, some themes numbered from t1.

    Written once for all stages of a round. `identity` is the same with the destination normalised.
    """

    data: str
    identity: str
    count: int

    @classmethod
    def of(
        cls,
        destination: Destination,
        themes: Sequence[Theme] = (),
        evidence: Sequence[dict[str, str]] = (),
        columns: Iterable[str] = (),
    ) -> "Input":
        """Write the block of data.

        `evidence` are quotations from `workers.pipeline.evidence`; `columns` are titles of further columns of the
        input.
        """
        listed = [
            {"id": number, "category": theme.category, "name": theme.name}
            for number, theme in zip(schemas.theme_ids(len(themes)), themes, strict=True)
        ]
        written = {"name": destination.name, "country": destination.country, "region": destination.region}
        known = {key: value for key, value in written.items() if value}
        if sent := {title_key(column) for column in columns}:
            more = {title: text for title, text in destination.extra.items() if title_key(title) in sent}
            known |= {title: text for title, text in more.items() if title not in written}
        if destination.lat is not None and destination.lon is not None:
            known |= {"lat": destination.lat, "lon": destination.lon}  # type: ignore[dict-item]
        canonical = {key: normalise(value) if isinstance(value, str) else value for key, value in known.items()}
        quoted = list(evidence)
        return cls(_input_block(known, listed, quoted), _input_block(canonical, listed, quoted), len(themes))


def _input_block(destination: dict[str, Any], themes: list[dict[str, str]], evidence: list[dict[str, str]]) -> str:
    """The data of a prompt as one line of JSON between markers; `<` is escaped so that no name can close them."""
    data: dict[str, Any] = {"destination": destination}
    data |= {name: part for name, part in (("themes", themes), ("evidence", evidence)) if part}
    text = msgspec.json.encode(data).decode().replace("<", "\\u003c")
    return f"<input>\n{text}\n</input>"


def load_stages(folder: Path | None = None, *, with_evidence: bool = False) -> list[Stage]:
    """Read every prompt file of a folder, by default the built-in ones, in the order of their names.

    With evidence, the prompts of stages that find themes ask for citations, and have other versions.

    Raises `ConfigError`: a file is missing or wrong; the message names the file and the mend.
    """
    folder = folder or BUILT_IN
    try:
        system = (folder / SYSTEM).read_text("utf-8").strip()
        files = sorted(path for path in folder.glob("*.md") if path.name not in {SYSTEM, EVIDENCE})
        stages = [_read(path.name, path.read_text("utf-8-sig"), system) for path in files]
        if with_evidence:
            told = folder / EVIDENCE if (folder / EVIDENCE).exists() else BUILT_IN / EVIDENCE
            stages = [_citing(stage, told.read_text("utf-8").strip()) for stage in stages]
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"pipeline.prompts_dir: {folder}: {exc}; it needs {SYSTEM} and one file a stage") from exc
    if not any(stage.asks == "new themes" for stage in stages):
        raise ConfigError(f"pipeline.prompts_dir: {folder}: no stage has `asks: new themes`, so there would be none")
    return stages


def stages_of(settings: Settings) -> list[Stage]:
    """The stages that these settings ask for. Raises as `load_stages`."""
    return load_stages(settings.pipeline.prompts_dir, with_evidence=settings.web_discovery.enabled)


def _citing(stage: Stage, told: str) -> Stage:
    if stage.asks != "new themes":
        return stage
    return replace(stage, instructions=f"{stage.instructions}\n\n{told}")


def pipeline_version(stages: Iterable[Stage], columns: Iterable[str] = ()) -> str:
    """A digest over the versions of all stages, and the further columns that their prompts show."""
    return version_of(((stage.name, stage.version) for stage in stages), columns)


@lru_cache(maxsize=64)
def _read(name: str, text: str, system: str) -> Stage:
    """The stage of a prompt file; kept, because each job of a process asks by the same ones."""
    _, *parts = text.replace("\r\n", "\n").split("---\n", 2)
    if len(parts) != 2 or not parts[1].strip():  # noqa: PLR2004
        raise ConfigError(f"{name}: expected front matter between two lines `---`, then the instructions")
    try:
        head = yaml.safe_load(parts[0])
    except yaml.YAMLError as exc:
        raise ConfigError(f"{name}: the front matter is not valid YAML: {' '.join(str(exc).split())}") from exc
    return _stage(name, head, parts[1].strip(), system)


def _stage(file: str, head: Any, instructions: str, system: str) -> Stage:
    def wrong(what: str) -> ConfigError:
        return ConfigError(f"{file}: {what}")

    stem = file.removesuffix(".md")

    if not isinstance(head, dict):
        raise wrong("the front matter has no `key: value` lines")
    unknown = set(head) - {"stage", "asks", "needs", "max_tokens", "model", "fields", "count"}
    if unknown:
        raise wrong(f"unknown key {min(unknown)!r}; known: stage, asks, needs, max_tokens, model, fields, count")
    if head.get("stage") != stem:
        raise wrong(f"`stage: {head.get('stage')}` must be the file's name, {stem}")
    if head.get("asks") not in get_args(Asks):
        raise wrong(f"`asks` must be one of: {', '.join(get_args(Asks))}")
    tokens = head.get("max_tokens")
    if not isinstance(tokens, int) or tokens < 1:
        raise wrong("`max_tokens` must be a whole number above 0")
    model = head.get("model")
    if model is not None and not (isinstance(model, str) and model):
        raise wrong("`model` must be a role of llm.roles or the name of a model")
    stage = Stage(
        name=stem,
        asks=head["asks"],
        needs=_needs(head.get("needs") or [], wrong),
        max_tokens=tokens,
        model=model,
        instructions=instructions,
        system=system,
        fields=head.get("fields") or {},
        count=_count(head.get("count"), wrong) if head["asks"] == "new themes" else (0, 0),
    )
    _check_fields(stage, wrong)
    return stage


def _needs(value: Any, wrong: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(need, str) for need in value):
        raise wrong("`needs` must be a list of stages, for instance [discover.*]")
    return tuple(value)


def _check_fields(stage: Stage, wrong: Any) -> None:
    if stage.asks != "new themes" and not (isinstance(stage.fields, dict) and stage.fields):
        raise wrong("`fields` must say what the stage adds")
    try:
        stage.schema(2)
    except ValueError as exc:
        raise wrong(f"`fields` is not a valid JSON Schema: {' '.join(str(exc).split())}") from exc
    if bad := next(_unusable_enums(stage.fields), None):
        raise wrong(f"`fields`: {bad}")


def _unusable_enums(schema: Any) -> Iterator[str]:
    """What is wrong with lists of values that a valid schema may have; YAML reads `yes` and `1` as no text."""
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for part in parts:
        yield from _unusable_enums(part)
    if isinstance(schema, dict) and isinstance(values := schema.get("enum"), list):
        if not values:
            yield "an `enum` without values allows no answer"
        for value in values if schema.get("type") == "string" else ():
            if not isinstance(value, str):
                yield f"`enum` has {msgspec.json.encode(value).decode()}, which is no string: write it in quotes"


def _count(value: Any, wrong: Any) -> tuple[int, int]:
    valid = isinstance(value, list) and len(value) == 2 and all(isinstance(item, int) for item in value)  # noqa: PLR2004
    if not valid or not 1 <= value[0] <= value[1]:
        raise wrong("`count` must be [fewest, most] themes, for instance [4, 6]")
    return value[0], value[1]
