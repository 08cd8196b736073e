"""litellm: `acompletion` with the schema as `response_format`; where a limit is measured, a Router with its `rpm`.

Validates: pydantic, `model_validate_json` (its `enable_json_schema_validation` takes 14 ms a call). Cache:
`litellm.cache`, type "redis". Limit: usage-based routing, which counts each minute's requests in Redis for all
processes; the Router retries what it refuses.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it fetches its list of prices at its import

import litellm
from driver import Call, Terms
from litellm.caching.caching import Cache
from models import model_of


def router(terms: Terms) -> Any:
    model = {"model": "openai/sandbox", "api_base": terms.server, "api_key": "none", "rpm": terms.per_minute}
    return litellm.Router(
        model_list=[{"model_name": "openai/sandbox", "litellm_params": model, "model_info": {"id": "sandbox"}}],
        routing_strategy="usage-based-routing-v2",
        redis_url=terms.redis,
        num_retries=3,
    )


@asynccontextmanager
async def opened(terms: Terms) -> AsyncIterator[Callable[[Call], Awaitable[object]]]:
    litellm.suppress_debug_info = True
    complete = router(terms).acompletion if terms.per_minute else litellm.acompletion
    if terms.redis and not terms.per_minute:
        litellm.cache = Cache(type="redis", url=terms.redis)

    async def ask(call: Call) -> object:
        place = {} if terms.per_minute else {"api_base": terms.server, "api_key": "none"}
        answer = await complete(**call.body() | {"model": "openai/sandbox"} | place)
        return model_of(call).model_validate_json(answer.choices[0].message.content)

    yield ask
