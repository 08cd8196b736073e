"""The openai SDK: AsyncOpenAI on aiohttp, as its README advises for concurrency, with the schema as `response_format`.

Validates: pydantic, `model_validate_json`. (`chat.completions.parse` does the same and makes the schema anew at each
call, which costs half as much again.) It has no cache and no limit.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from driver import Call, Terms
from models import model_of
from openai import AsyncOpenAI, DefaultAioHttpClient


@asynccontextmanager
async def opened(terms: Terms) -> AsyncIterator[Callable[[Call], Awaitable[object]]]:
    async with AsyncOpenAI(base_url=terms.server, api_key="none", http_client=DefaultAioHttpClient()) as client:

        async def ask(call: Call) -> object:
            answer = await client.chat.completions.create(**call.body())
            return model_of(call).model_validate_json(answer.choices[0].message.content)

        yield ask
