"""The steps of a shared flight that must not be torn apart, as Lua.

Each flight brings four keys: cache (its answer), lease (the token of who asks), waiters (somebody waits for it),
outcome (what its owner told them: token, a blank, payload).
"""

from typing import Final

from tasks import keys
from tasks.lua import lua

DEAD: Final = keys.dead("")

CLAIM: Final = lua(__file__, "claim")

END: Final = lua(__file__, "end_flight")

RENEW: Final = lua(__file__, "renew_flights")
