"""curator: one `curator.LLM` on its openai backend, a call of it with all prompts, each row with its parameters.

Does not validate here: a response model belongs to a whole `curator.LLM`, and one of sixteen prompts would be sixteen
runs one after the other. Cache: its own folder, where a run with the same rows is found again. Limit:
`max_requests_per_minute`, of one run.
"""

import asyncio
import importlib.util
import json
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from driver import Call, Terms

BATCH = True
# It counts tokens with an encoding that it would download; its dependency litellm has it in its package.
_LITELLM = importlib.util.find_spec("litellm")
os.environ |= {
    "TIKTOKEN_CACHE_DIR": str(Path(_LITELLM.origin).parent / "litellm_core_utils" / "tokenizers") if _LITELLM else "",
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
    "TELEMETRY_ENABLED": "0",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_API_KEY": "none",
}

from bespokelabs import curator  # noqa: E402


class Asker(curator.LLM):
    """Passes a row's messages on."""

    def prompt(self, row: dict[str, Any]) -> Any:
        return row["messages"]

    def parse(self, row: dict[str, Any], response: str) -> dict[str, Any]:
        return {"number": row["number"], "answer": response}


@asynccontextmanager
async def opened(terms: Terms) -> AsyncIterator[Callable[[list[Call]], Awaitable[list[object]]]]:
    folder = terms.folder or tempfile.mkdtemp()
    asker = Asker(
        model_name="sandbox",
        backend="openai",
        backend_params={
            "base_url": terms.server,
            "max_requests_per_minute": terms.per_minute or 100_000_000,
            "max_tokens_per_minute": 100_000_000_000,
            "max_concurrent_requests": terms.in_flight,
        },
    )

    async def ask_all(some: list[Call]) -> list[object]:
        rows = [
            {
                "number": call.number,
                "messages": call.messages,
                "generation_params": json.dumps(
                    {"response_format": call.response_format, "max_tokens": call.max_tokens}
                ),
            }
            for call in some
        ]
        done = await asyncio.to_thread(asker, rows, working_dir=folder)
        return [json.loads(row["answer"]) for row in done.dataset]

    yield ask_all
