"""A list of prices in genai-prices' shape, and how a server and a model are found in it.

The rules are the package's own: a test asks both for every model. Beyond them, a server that the list does not know
may name the provider in front of the model, as gateways do.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Final

from tasks.prices.shapes import Match, Model, Provider

#: What LiteLLM and others write in front of a model, where that is not the provider's id in the list. Empty: whoever is
#: asked there has no prices in it.
_GATEWAY_NAMES: Final = {
    "azure_ai": "azure", "bedrock": "aws", "bedrock_converse": "aws", "gemini": "google", "vertex_ai": "google",
    "xai": "x-ai", "fireworks_ai": "fireworks", "together_ai": "together", "moonshot": "moonshotai",
    "deepinfra": "", "github_copilot": "", "hosted_vllm": "", "lm_studio": "", "ollama": "", "ollama_chat": "",
    "replicate": "", "sagemaker": "",
}  # fmt: skip
#: Models whose weights are open: a server of one's own calls them so too, with their maker in front.
_OPEN_WEIGHTS: Final = re.compile(r"(?:openai|google)/.*(?:gpt-oss|gemma|whisper)")
#: How Bedrock writes a model: `anthropic.claude-…`, `eu.anthropic.claude-…`.
_BEDROCK: Final = re.compile(
    r"(?:[a-z]{2,6}\.)?(?:ai21|amazon|anthropic|cohere|deepseek|meta|mistral|openai|qwen)\.[a-z]"
)
_COMPACT_DATE: Final = re.compile(r"(-)(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


class Catalogue:
    """`source` says in words where it is from."""

    def __init__(self, providers: Sequence[Provider], source: str) -> None:
        self.providers = {one.id: one for one in providers}
        self.source = source

    def __repr__(self) -> str:
        return f"<Catalogue providers={len(self.providers)} from {self.source}>"

    def find(self, base_url: str, model: str) -> tuple[Provider, Model] | None:
        """Who sells a model at an address, and its prices; None where the list has none."""
        name = model.lower()
        for provider, ref in self._sellers(base_url, name):
            if found := self._model(provider, ref):
                return provider, found
        return None

    def _sellers(self, base_url: str, name: str) -> Iterator[tuple[Provider, str]]:
        """Providers that may be meant, with the name that each knows the model by."""
        if here := self._at(base_url):
            yield here, name
            prefix, _, rest = name.partition("/")
            if prefix == "models" or self._named(prefix) is here:
                yield here, rest
            return
        while "/" in name:
            if _OPEN_WEIGHTS.match(name):
                return
            prefix, _, name = name.partition("/")
            if prefix in _GATEWAY_NAMES or prefix in self.providers:
                if named := self._named(prefix):
                    yield named, name
                return
        if _BEDROCK.match(name) and (aws := self._named("aws")):
            yield aws, name

    def _named(self, prefix: str) -> Provider | None:
        return self.providers.get(_GATEWAY_NAMES.get(prefix, prefix))

    def _at(self, base_url: str) -> Provider | None:
        return next((one for one in self.providers.values() if re.match(one.api_pattern, base_url)), None)

    def _model(self, provider: Provider, name: str) -> Model | None:
        return self._matching(provider, name) or self._matching(provider, _COMPACT_DATE.sub(_with_dashes, name))

    def _matching(self, provider: Provider, name: str) -> Model | None:
        fallbacks = (self.providers.get(each) for each in provider.fallback_model_providers or ())
        for seller in (provider, *fallbacks):
            for model in seller.models if seller else ():
                if is_match(model.match, name):
                    return model
        return None


def _with_dashes(found: re.Match[str]) -> str:
    year, month, day = (int(found[group]) for group in (2, 3, 4))
    try:
        return f"-{date(year, month, day)}"
    except ValueError:
        return found[0]


def is_match(clause: Match, name: str) -> bool:
    """Whether a name, in small letters, is meant by a clause."""
    if clause.regex is not None:
        return re.search(clause.regex, name) is not None
    if clause.or_ is not None:
        return any(is_match(each, name) for each in clause.or_)
    if clause.and_ is not None:
        return all(is_match(each, name) for each in clause.and_)
    return (
        (clause.equals is not None and name == clause.equals.lower())
        or (clause.starts_with is not None and name.startswith(clause.starts_with.lower()))
        or (clause.ends_with is not None and name.endswith(clause.ends_with.lower()))
        or (clause.contains is not None and clause.contains.lower() in name)
    )
