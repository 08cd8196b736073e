"""The rate of an endpoint whose limit nobody has configured, measured by its refusals; in Lua, for all processes.

A provider's bucket is empty at the moment of a 429. So what was accepted between two waves of refusals is what flowed
in meanwhile: requests accepted / time between is the rate, whatever the bucket's size. Several waves are added up.
Until the first 429 nothing is counted and nothing asked. Then:

* after the first wave the rate is unknown: requests start slowly, one in 25 ms, twice as fast every 250 ms, until the
  next wave. Sent one by one, few are refused before the first refusal is heard;
* from then on they are paced at 99 % of the rate that was measured. What flowed in during a cool-down may go at once,
  for the bucket has it; where that is refused the bucket is smaller, and is taken for what it gave;
* every 5 s without a refusal, while requests wait, the rate is raised: by 2 %, and each time by twice as much as the
  time before, so that a limit that was lifted, or was none, is soon forgotten.

A wave is counted when its cool-down is over, when every process has told what it sent and what was refused.

Sources: the token bucket of RFC 2697; Jacobson, "Congestion Avoidance and Control", SIGCOMM 1988, for the slow start.
"""

from typing import Final

#: Microseconds between the first requests of a slow start, and after which they come twice as often.
SLOW_US: Final = 25_000
TWICE_AFTER_US: Final = 250_000
#: Times as long as measured that the pause between two requests is; each wave makes it wider, up to a bound, for what
#: was refused shows that the measure was too fast.
MARGIN: Final = 1.01
WIDER: Final = 1.02
WIDEST: Final = 1.3
#: Accepted requests that make a measurement.
ENOUGH: Final = 20
#: Accepted requests by which the measure itself is good to a few percent: then another wave says that it is too fast.
SURE: Final = 100
#: Microseconds of measuring after which the older half counts half.
FORGET_US: Final = 20_000_000
#: Microseconds between two waves beyond which they say nothing: the bucket was full in between.
LONGEST_US: Final = 60_000_000
#: Microseconds after its first refusal that a wave lasts at least.
WAVE_US: Final = 10_000
#: Times as fast that the first raise makes it.
RAISE: Final = 1.02
#: Microseconds between two raises of the rate.
RAISE_US: Final = 5_000_000
#: Microseconds of requests that may go at once after a cool-down.
CREDIT_US: Final = 2_000_000
#: Microseconds between two requests below which there is no limit worth the name.
FREE_US: Final = 100
#: Seconds after which what was learnt is forgotten, when nobody asks.
LEARNT_SECONDS: Final = 600

#: Counts what was sent and refused, and closes a wave whose cool-down is over. Has: now, cool, KEYS[4], sent, refused.
#: Leaves: us (0: not known), b, empty, started, learning.
BEFORE: Final = f"""
local us, b, empty, wave, n, x, started, raised, step = 0, 1, 0, 0, 0, 0, 0, 0, {RAISE}
local flowed, over, margin = 0, 0, {MARGIN}
local known = redis.call('HMGET', KEYS[4], 'us', 'b', 'empty', 'wave', 'n', 'x', 'started', 'raised', 'step',
  'flowed', 'over', 'margin')
local learning = known[1] ~= false
if learning then
  us, b, empty, wave = tonumber(known[1]), tonumber(known[2]), tonumber(known[3]), tonumber(known[4])
  n, x, started = tonumber(known[5]), tonumber(known[6]), tonumber(known[7])
  raised, step, flowed, over = tonumber(known[8]), tonumber(known[9]), tonumber(known[10]), tonumber(known[11])
  margin = tonumber(known[12])
end
if learning or refused > 0 then
  learning = true
  n = n + sent
  x = x + refused
  if refused > 0 and wave == 0 then wave = now end
  if wave > 0 and cool <= now and now - wave > {WAVE_US} then
    local accepted = math.max(1, n - x)
    local passed = wave - empty
    local credit = us > 0 and math.min(b, (started - empty) / us) or 0
    if credit >= {ENOUGH} and accepted < credit / 2 then
      b = math.max(1, accepted)
    elseif empty > 0 and passed < {LONGEST_US} then
      flowed, over = flowed + accepted, over + passed
      if over > {FORGET_US} then flowed, over = flowed / 2, over / 2 end
      if flowed >= {ENOUGH} then
        if us > 0 and flowed > {SURE} then margin = math.min({WIDEST}, margin * {WIDER}) end
        us = over / flowed * margin
        b = math.max(1, math.min(b > 1 and b or {CREDIT_US}, {CREDIT_US} / us))
      end
    elseif us > 0 then
      us = us * 1.1
    end
    empty, wave, n, x, started, raised, step = wave, 0, 0, 0, now, now, {RAISE}
    if us > 0 then r = empty + (b - 1) * us else r = now end
  end
end
"""

#: Sets the pace of this reservation. Has what `BEFORE` leaves, and r; leaves request_us, request_burst, slow.
PACE: Final = f"""
local slow = nil
if learning and request_us == 0 then
  if us > 0 then
    if now - raised > {RAISE_US} then
      if r - (b - 1) * us > now then
        us = us / step
        margin = math.max(1, margin / step)
        step = math.min(2, 1 + (step - 1) * 2)
      end
      raised = now
    end
    request_us, request_burst = us, b
  else
    slow = math.max(started, wave, cool)
  end
end
"""

#: The next slot's time in a slow start. Has: at; leaves at and r.
SLOW: Final = f"""
    at = math.max(at, r)
    r = at + math.max({FREE_US}, {SLOW_US} / 2 ^ math.max(0, (at - slow) / {TWICE_AFTER_US}))
"""

#: Keeps it all, or forgets it.
AFTER: Final = f"""
if learning then
  if us > 0 and us < {FREE_US} then
    redis.call('DEL', KEYS[4])
    learning = false
  else
    redis.call('HSET', KEYS[4], 'us', string.format('%.17g', us), 'b', string.format('%.17g', b),
      'empty', string.format('%.0f', empty), 'wave', string.format('%.0f', wave), 'n', n, 'x', x,
      'started', string.format('%.0f', started), 'raised', string.format('%.0f', raised), 'step', step,
      'flowed', string.format('%.17g', flowed), 'over', string.format('%.0f', over), 'margin', margin)
    redis.call('EXPIRE', KEYS[4], {LEARNT_SECONDS})
  end
end
"""
