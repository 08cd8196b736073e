"""instructor: `from_openai(AsyncOpenAI(…), mode=JSON_SCHEMA)` and `create` with a response model.

Validates: pydantic, its purpose. Cache: its DiskCache (diskcache). It has no limit.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import instructor
from driver import Call, Terms
from instructor.cache import DiskCache
from models import model_of
from openai import AsyncOpenAI, DefaultAioHttpClient


@asynccontextmanager
async def opened(terms: Terms) -> AsyncIterator[Callable[[Call], Awaitable[object]]]:
    # Without a namespace another client, and so another process, does not find what this one has stored.
    kept = {"cache": DiskCache(directory=terms.folder), "cache_namespace": "peers"} if terms.folder else {}
    async with AsyncOpenAI(base_url=terms.server, api_key="none", http_client=DefaultAioHttpClient()) as sdk:
        client = instructor.from_openai(sdk, mode=instructor.Mode.JSON_SCHEMA)

        async def ask(call: Call) -> object:
            return await client.create(
                model="sandbox",
                messages=call.messages,
                response_model=model_of(call),
                max_tokens=call.max_tokens,
                **kept,
            )

        yield ask
