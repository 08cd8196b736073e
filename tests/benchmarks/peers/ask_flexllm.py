"""flexllm: one LLMClient, `chat_batch` of all prompts with each one's schema and tokens in `params_list`.

Does not validate: the answer is decoded. Cache: ResponseCacheConfig (LMDB). Limit: `max_qps`, of one client.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from driver import Call, Terms
from flexllm import LLMClient, ResponseCacheConfig

BATCH = True


@asynccontextmanager
async def opened(terms: Terms) -> AsyncIterator[Callable[[list[Call]], Awaitable[list[object]]]]:
    cache = ResponseCacheConfig.with_ttl(86_400, cache_dir=terms.folder) if terms.folder else None
    client = LLMClient(
        base_url=terms.server,
        api_key="none",
        model="sandbox",
        concurrency_limit=terms.in_flight,
        max_qps=terms.per_minute / 60 or None,
        cache=cache,
    )

    async def ask_all(some: list[Call]) -> list[object]:
        params = [{"response_format": call.response_format, "max_tokens": call.max_tokens} for call in some]
        done = await client.chat_batch([call.messages for call in some], params_list=params, show_progress=False)
        return [json.loads(one.content) if one.content else repr(one) for one in done]

    yield ask_all
