"""How providers differ in their batch APIs, as data. Who names no host here is taken for OpenAI's protocol.

Each fact is from the provider's own reference, named beside it. Alibaba Model Studio, Cerebras, Groq (at most 100 MB a
file) and Moonshot document OpenAI's protocol as it is. OpenRouter documents no batches.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal
from urllib.parse import urlsplit

State = Literal["running", "completed", "failed", "expired", "cancelled"]

#: Words of every provider in lower case; none of them means two things.
STATES: Final[Mapping[str, State]] = MappingProxyType(
    {
        # OpenAI and who follows it: developers.openai.com/api/reference, Batches
        "validating": "running", "in_progress": "running", "finalizing": "running", "cancelling": "running",
        "completed": "completed", "failed": "failed", "expired": "expired", "cancelled": "cancelled",
        # Mistral: mistralai/client-python, docs/models/batchjobstatus.md
        "queued": "running", "running": "running", "cancellation_requested": "running",
        "success": "completed", "timeout_exceeded": "expired",
        # Novita (novita.ai/docs/guides/llm-batch-api), and American spelling
        "progress": "running", "canceling": "running", "canceled": "cancelled",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BatchDialect:
    """Paths stand behind the base URL; names are those of the fields of a batch object."""

    name: str = "OpenAI"
    files_path: str = "files"
    batches_path: str = "batches"
    #: The `url` of each line; lines have neither `url` nor `method` where it is empty.
    line_url: str = "/v1/chat/completions"
    endpoint: str = "/v1/chat/completions"
    purpose: str = "batch"
    #: What is asked of a list of files, besides its purpose.
    files_query: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"order": "desc"}))
    #: How long the provider may take, as it wants to be told.
    window: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({"completion_window": "24h"}))
    input_field: str = "input_file_id"
    takes_many_inputs: bool = False
    output_field: str = "output_file_id"
    error_field: str = "error_file_id"
    #: The object that has the counts, else the batch itself has them, and their names: all, answered, failed.
    counts_field: str = "request_counts"
    count_names: tuple[str, str, str] = ("total", "completed", "failed")
    #: A batch is created for one model, which its request names.
    names_model: bool = False
    #: The parameter that counts pages, from 0; pages follow an object by `after` where it is empty.
    page_parameter: str = ""
    page_size_parameter: str = "limit"
    #: The end of a base URL behind which there are completions alone.
    completions_only: re.Pattern[str] | None = None
    #: Why batches there cannot be used.
    refusal: str = ""

    def root(self, base_url: str) -> str:
        """The base URL of files and batches."""
        return self.completions_only.sub("", base_url) if self.completions_only else base_url


OPENAI: Final = BatchDialect()
#: learn.microsoft.com/azure/foundry/openai/how-to/batch and …/authoring-reference-preview: files and batches are the
#: resource's, not a deployment's; lines name the deployment as their model.
AZURE: Final = BatchDialect(
    name="Azure OpenAI",
    line_url="/chat/completions",
    endpoint="/chat/completions",
    completions_only=re.compile(r"/deployments/[^/]+$"),
)
#: mistralai/client-python, docs: models/batchjob.md, models/createbatchjobrequest.md, sdks/batchjobs/README.md and
#: sdks/files/README.md; docs.mistral.ai/capabilities/batch for the lines.
MISTRAL: Final = BatchDialect(
    name="Mistral",
    batches_path="batch/jobs",
    line_url="",
    files_query=MappingProxyType({}),
    window=MappingProxyType({"timeout_hours": 24}),
    input_field="input_files",
    takes_many_inputs=True,
    output_field="output_file",
    error_field="error_file",
    counts_field="",
    count_names=("total_requests", "succeeded_requests", "failed_requests"),
    names_model=True,
    page_parameter="page",
    page_size_parameter="page_size",
)
#: docs.bigmodel.cn/api-reference, Batch: its own version in the path, no completion window.
ZHIPU: Final = BatchDialect(
    name="Zhipu", line_url="/v4/chat/completions", endpoint="/v4/chat/completions", window=MappingProxyType({})
)
#: docs.together.ai/reference/batch-create: a batch has no metadata, so one whose reply was lost could be paid twice.
TOGETHER: Final = BatchDialect(name="Together", refusal="its batches carry no mark by which one could be found again")

#: The end of a host's name.
_HOSTS: Final[Mapping[str, BatchDialect]] = MappingProxyType(
    {
        ".openai.azure.com": AZURE,
        ".services.ai.azure.com": AZURE,
        ".cognitiveservices.azure.com": AZURE,
        ".mistral.ai": MISTRAL,
        ".bigmodel.cn": ZHIPU,
        ".together.xyz": TOGETHER,
        ".together.ai": TOGETHER,
    }
)


def dialect_of(base_url: str) -> BatchDialect:
    host = f".{urlsplit(base_url).hostname or ''}"
    return next((dialect for end, dialect in _HOSTS.items() if host.endswith(end)), OPENAI)
