"""Rate limits as times: the generic cell rate algorithm, in Lua for all processes and in Python for one alone.

A limit is one number, the theoretical arrival time (TAT): when everything that was let through would have drained at
the allowed rate. A request may go as soon as the TAT is no further ahead than the burst allows. Reserving moves the TAT
at once and returns the time of the caller's slot, so nobody ever asks twice. Requests and tokens are two such numbers,
and a cool-down is a time before which there are no slots: a slot satisfies all three.

Source: ITU-T Recommendation I.371, annex A (virtual scheduling). All times are microseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from tasks import keys
from workers.llm.limits import rate_learner as learnt_rate

MICROSECONDS: Final = 1_000_000
#: Seconds of an unset burst: one second's worth keeps the line full without a visible wave.
BURST_SECONDS: Final = 1.0
#: Requests of a burst that are not used, or a tenth of it.
SLACK: Final = 2.0
#: Seconds of tokens that may go at once: providers count them by the minute.
TOKEN_BURST_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What an endpoint allows: microseconds a request and a token (0: unlimited), and how many of each at once."""

    request_us: float = 0.0
    request_burst: float = 1.0
    token_us: float = 0.0
    token_burst: float = 1.0

    @classmethod
    def per_minute(cls, requests: float | None, tokens: float | None, request_burst: float | None = None) -> "Limits":
        """Limits from what providers publish; None is unlimited.

        Of a burst a little is left to the endpoint: requests do not arrive as evenly as they are sent. One that comes a
        millisecond early at an empty bucket is refused, and a whole second may be lost for it.
        """
        burst = request_burst or max(1.0, (requests or 0) / 60 * BURST_SECONDS)
        burst = max(1.0, burst - min(SLACK, burst / 10))
        return cls(
            request_us=60 * MICROSECONDS / requests if requests else 0.0,
            request_burst=burst,
            token_us=60 * MICROSECONDS / tokens if tokens else 0.0,
            token_burst=max(1.0, (tokens or 0) / 60 * TOKEN_BURST_SECONDS),
        )

    @property
    def is_unlimited(self) -> bool:
        """Whether there is nothing to reserve."""
        return not self.request_us and not self.token_us

    @property
    def words(self) -> str:
        """As the settings name them, for people."""
        rates = ((self.request_us, "request"), (self.token_us, "token"))
        numbers = [(60 * MICROSECONDS / each_us, what) for each_us, what in rates if each_us]
        return ", ".join(f"{number:,.10g} {what}{'' if number == 1 else 's'} a minute" for number, what in numbers)

    def share(self, users: int) -> "Limits":
        """One process's part where `users` processes cannot ask each other; never less than one at a time."""
        users = max(1, users)
        return replace(
            self,
            request_us=self.request_us * users,
            request_burst=max(1.0, self.request_burst / users),
            token_us=self.token_us * users,
            token_burst=max(1.0, self.token_burst / users),
        )


@dataclass(slots=True)
class Gcra:
    """The limits of one process alone; the same arithmetic as `RESERVE`. `now_us` comes from any one clock."""

    limits: Limits
    request_tat_us: float = 0.0
    token_tat_us: float = 0.0

    def reserve(self, tokens: float, *, now_us: float, not_before_us: float = 0.0) -> float:
        """The time of the next slot, which is the caller's."""
        limits = self.limits
        at = max(now_us, not_before_us)
        if limits.token_us:
            room = limits.token_burst - min(tokens, limits.token_burst)
            at = max(at, self.token_tat_us - room * limits.token_us)
        if limits.request_us:
            at = max(at, self.request_tat_us - (limits.request_burst - 1) * limits.request_us)
            self.request_tat_us = max(self.request_tat_us, at) + limits.request_us
        if limits.token_us:
            self.token_tat_us = max(self.token_tat_us, at) + tokens * limits.token_us
        return at

    def correct(self, tokens: float) -> None:
        """Count `tokens` more than were reserved; fewer where it is negative."""
        self.token_tat_us += tokens * self.limits.token_us


#: KEYS limit users cooldown learnt; ARGV user request_us request_burst token_us token_burst correction sent refused
#: returned-count returned-TAT... tokens...; returns {users, now, when the last wave of refusals began (us; 0: none; -1:
#: nothing is learnt), (slot, TAT of requests)...}, the TATs as text.
#: A slot is returned only when it is the last one reserved: the others' slots stand behind it.
RESERVE: Final = f"""
local t = redis.call('TIME')
local now = t[1] * {MICROSECONDS} + t[2]
local request_us, request_burst = tonumber(ARGV[2]), tonumber(ARGV[3])
local token_us, token_burst = tonumber(ARGV[4]), tonumber(ARGV[5])
local state = redis.call('HMGET', KEYS[1], 'r', 't')
local r, k = tonumber(state[1] or '0'), tonumber(state[2] or '0')
k = k + tonumber(ARGV[6]) * token_us
local sent, refused, returned = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local cool = now + math.max(0, redis.call('PTTL', KEYS[3])) * 1000
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - {keys.USER_SECONDS * MICROSECONDS})
redis.call('EXPIRE', KEYS[2], {keys.USER_SECONDS})
{learnt_rate.BEFORE}
{learnt_rate.PACE}
for i = 10, 9 + returned do
  if string.format('%.0f', r) == ARGV[i] then r = r - request_us end
end
{learnt_rate.AFTER}
local since = learning and string.format('%.0f', math.max(empty, wave)) or '-1'
local answer = {{redis.call('ZCARD', KEYS[2]), string.format('%.0f', now), since}}
for i = 10 + returned, #ARGV do
  local tokens = tonumber(ARGV[i])
  local at = cool
  if token_us > 0 then at = math.max(at, k - (token_burst - math.min(tokens, token_burst)) * token_us) end
  if slow then
{learnt_rate.SLOW}
  elseif request_us > 0 then
    at = math.max(at, r - (request_burst - 1) * request_us)
    r = math.max(r, at) + request_us
  end
  if token_us > 0 then k = math.max(k, at) + tokens * token_us end
  answer[#answer + 1] = string.format('%.0f', at)
  answer[#answer + 1] = string.format('%.0f', r)
end
redis.call('HSET', KEYS[1], 'r', string.format('%.17g', r), 't', string.format('%.17g', k))
redis.call('PEXPIRE', KEYS[1], math.ceil((math.max(r, k, now) - now) / 1000) + {keys.LIMIT_SECONDS * 1000})
return answer
"""


def reservation_arguments(
    user: str,
    limits: Limits,
    *,
    correction: float,
    returned: Sequence[str],
    tokens: Sequence[float],
    sent: int = 0,
    refused: int = 0,
) -> list[str | float]:
    """What `RESERVE` takes; slots are returned newest first, so that a row of them can go."""
    newest_first = sorted(returned, key=int, reverse=True)
    bounds = (limits.request_us, limits.request_burst, limits.token_us, limits.token_burst)
    return [user, *bounds, correction, sent, refused, len(newest_first), *newest_first, *tokens]


#: KEYS limit users; ARGV change request_us request_burst token_us token_burst ahead. Slots that were reserved at other
#: limits are worth nothing: from now on the new ones hold, with nothing saved up. The first process that tells of a
#: change makes it. Those that come later may have reserved at the old pace in between: what is further off than all
#: lines together reach at the new one is taken back.
CHANGE: Final = f"""
local t = redis.call('TIME')
local now = t[1] * {MICROSECONDS} + t[2]
local request_us, request_burst = tonumber(ARGV[2]), tonumber(ARGV[3])
local full = tonumber(ARGV[5]) * tonumber(ARGV[4])
local state = redis.call('HMGET', KEYS[1], 'c', 'r', 't')
local r, k = now + (request_burst - 1) * request_us, now + full
if state[1] == ARGV[1] then
  local lines = redis.call('ZCARD', KEYS[2]) * tonumber(ARGV[6])
  r = math.min(tonumber(state[2] or '0'), r + lines * request_us)
  k = math.min(tonumber(state[3] or '0'), k + full)
end
redis.call('HSET', KEYS[1], 'c', ARGV[1], 'r', string.format('%.17g', r), 't', string.format('%.17g', k))
redis.call('PEXPIRE', KEYS[1], math.ceil((math.max(r, k, now) - now) / 1000) + {keys.LIMIT_SECONDS * 1000})
return 1
"""


def change_arguments(before: Limits, after: Limits, *, max_ahead: int) -> list[str | float]:
    """What `CHANGE` takes. Processes that make the same change call it by the same name."""
    bounds = (after.request_us, after.request_burst, after.token_us, after.token_burst)
    return [f"{before} {after}", *bounds, max_ahead]
