"""LangChain: ChatOpenAI with `with_structured_output(method="json_schema")`, a chain a prompt.

Validates: pydantic. Cache: `set_llm_cache(AsyncRedisCache(…))` of langchain-community (RedisCache of langchain-redis
needs a Redis with the JSON module). Limit: InMemoryRateLimiter, of one process by its documentation.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from driver import Call, Terms
from langchain_core.globals import set_llm_cache
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_openai import ChatOpenAI
from models import model_of


@asynccontextmanager
async def opened(terms: Terms) -> AsyncIterator[Callable[[Call], Awaitable[object]]]:
    if terms.redis and not terms.per_minute:
        from langchain_community.cache import AsyncRedisCache
        from redis.asyncio import Redis

        set_llm_cache(AsyncRedisCache(Redis.from_url(terms.redis), ttl=86_400))
    limiter = InMemoryRateLimiter(requests_per_second=terms.per_minute / 60) if terms.per_minute else None
    chains: dict[str, Any] = {}

    def chain(call: Call) -> Any:
        model = ChatOpenAI(
            model="sandbox",
            base_url=terms.server,
            api_key="none",
            max_tokens=call.max_tokens,
            rate_limiter=limiter,
        )
        return model.with_structured_output(model_of(call), method="json_schema", strict=True)

    async def ask(call: Call) -> object:
        if call.name not in chains:
            chains[call.name] = chain(call)
        return await chains[call.name].ainvoke(call.messages)

    yield ask
