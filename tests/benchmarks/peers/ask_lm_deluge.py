"""lm-deluge: one LLMClient and its tracker, `process_prompts_async` with `output_schema`, a batch a prompt at once.

Does not validate: the answer is decoded. Cache: its SqliteCache. Limit: `max_requests_per_minute`, of one client.
"""

import asyncio
import json
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from driver import Call, Terms
from lm_deluge import Conversation, LLMClient
from lm_deluge.cache import SqliteCache
from lm_deluge.models import register_model

BATCH = True


@asynccontextmanager
async def opened(terms: Terms) -> AsyncIterator[Callable[[list[Call]], Awaitable[list[object]]]]:
    os.environ["SANDBOX_KEY"] = "none"
    register_model("sandbox", "sandbox", terms.server, "SANDBOX_KEY", supports_json=True)
    if terms.folder:
        Path(terms.folder).mkdir(parents=True, exist_ok=True)
    client = LLMClient(
        "sandbox",
        max_requests_per_minute=terms.per_minute or 100_000_000,
        max_tokens_per_minute=100_000_000_000,
        max_concurrent_requests=terms.in_flight,
        max_new_tokens=4_800,
        cache=SqliteCache(f"{terms.folder}/cache.db") if terms.folder else None,
    )
    client.open(show_progress=False)

    async def of_prompt(some: list[Call]) -> list[object]:
        schema = some[0].response_format["json_schema"]["schema"] | {"title": some[0].name}
        prompts = [Conversation.from_openai_chat(call.messages) for call in some]
        answers = await client.process_prompts_async(prompts, show_progress=False, output_schema=schema)
        return [json.loads(one.completion) if one.completion else one.error_message for one in answers]

    async def ask_all(some: list[Call]) -> list[object]:
        by_prompt: dict[str, list[Call]] = defaultdict(list)
        for call in some:
            by_prompt[call.name].append(call)
        parts = await asyncio.gather(*map(of_prompt, by_prompt.values()))
        return [answer for part in parts for answer in part]

    yield ask_all
