-- KEYS limit users cooldown learnt; ARGV user request_us request_burst token_us token_burst correction sent refused
-- user_seconds limit_seconds returned-count returned-TAT... tokens... All times are microseconds.
-- Returns {users, now, when the last wave of refusals began (0: none; -1: nothing is learnt), (slot, TAT of
-- requests)...}, times as text. A slot is returned only when it is the last one reserved: the others' stand behind it.
--
-- Where no rate of requests is configured, refusals teach it. A provider's bucket is empty at the moment of a 429, so
-- what was accepted between two waves of refusals is what flowed in meanwhile: requests accepted / time between is the
-- rate, whatever the bucket's size. Several waves are added up. Until the first 429 nothing is counted. Then:
-- * after the first wave the rate is unknown: requests start slowly, one in 25 ms, twice as fast every 250 ms, until
--   the next wave. Sent one by one, few are refused before the first refusal is heard;
-- * from then on they are paced at 99 % of the measured rate. What flowed in during a cool-down may go at once, for the
--   bucket has it; where that is refused the bucket is smaller, and is taken for what it gave;
-- * every 5 s without a refusal, while requests wait, the rate is raised: by 2 %, and each time by twice as much as the
--   time before, so that a limit that was lifted, or was none, is soon forgotten.
-- A wave is counted when its cool-down is over, when every process has reported what it sent and what was refused.
-- Sources: the token bucket of RFC 2697; Jacobson, "Congestion Avoidance and Control", SIGCOMM 1988 (slow start).

-- Between the first requests of a slow start, and after which they come twice as often.
local SLOW_US, TWICE_AFTER_US = 25000, 250000
-- Times as long as measured that the pause between two requests is; each wave makes it wider, up to a bound, for what
-- was refused shows that the measure was too fast.
local MARGIN, WIDER, WIDEST = 1.01, 1.02, 1.3
-- Accepted requests that make a measurement; beyond SURE it is good to a few percent, and another wave says that it is
-- too fast.
local ENOUGH, SURE = 20, 100
-- Of measuring, after which the older half counts half.
local FORGET_US = 20000000
-- Between two waves beyond which they say nothing: the bucket was full in between.
local LONGEST_US = 60000000
-- That a wave lasts at least after its first refusal.
local WAVE_US = 10000
-- Times as fast that the first raise makes the rate, and the time between two raises.
local RAISE, RAISE_US = 1.02, 5000000
-- Of requests that may go at once after a cool-down.
local CREDIT_US = 2000000
-- Between two requests below which there is no limit worth the name.
local FREE_US = 100
-- Seconds after which what was learnt is forgotten, when no process asks.
local LEARNT_SECONDS = 600

local limit, users, cooldown, learnt = unpack(KEYS, 1, 4)
local user = ARGV[1]
local request_us, request_burst = tonumber(ARGV[2]), tonumber(ARGV[3])
local token_us, token_burst = tonumber(ARGV[4]), tonumber(ARGV[5])
local correction, sent, refused = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local user_seconds, limit_seconds, returned = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])

-- What was learnt: us a request (0: not known), b requests at once, empty: when the last wave began, wave: when this one
-- did, n sent and x refused since, started and raised: since when the rate holds, step: of the next raise, flowed
-- requests over time, margin.
local FIELDS = {'us', 'b', 'empty', 'wave', 'n', 'x', 'started', 'raised', 'step', 'flowed', 'over', 'margin'}
local s = {us = 0, b = 1, empty = 0, wave = 0, n = 0, x = 0, started = 0, raised = 0, step = RAISE}
s.flowed, s.over, s.margin = 0, 0, MARGIN

-- Learns from a wave that is over; returns the TAT of requests.
local function close_wave(now)
  local accepted, passed = math.max(1, s.n - s.x), s.wave - s.empty
  local credit = s.us > 0 and math.min(s.b, (s.started - s.empty) / s.us) or 0
  if credit >= ENOUGH and accepted < credit / 2 then
    s.b = math.max(1, accepted)
  elseif s.empty > 0 and passed < LONGEST_US then
    s.flowed, s.over = s.flowed + accepted, s.over + passed
    if s.over > FORGET_US then s.flowed, s.over = s.flowed / 2, s.over / 2 end
    if s.flowed >= ENOUGH then
      if s.us > 0 and s.flowed > SURE then s.margin = math.min(WIDEST, s.margin * WIDER) end
      s.us = s.over / s.flowed * s.margin
      s.b = math.max(1, math.min(s.b > 1 and s.b or CREDIT_US, CREDIT_US / s.us))
    end
  elseif s.us > 0 then
    s.us = s.us * 1.1
  end
  s.empty, s.wave, s.n, s.x, s.started, s.raised, s.step = s.wave, 0, 0, 0, now, now, RAISE
  return s.us > 0 and s.empty + (s.b - 1) * s.us or now
end

-- Raises the rate where requests wait.
local function raise(now, r)
  if now - s.raised <= RAISE_US then return end
  if r - (s.b - 1) * s.us > now then
    s.us = s.us / s.step
    s.margin = math.max(1, s.margin / s.step)
    s.step = math.min(2, 1 + (s.step - 1) * 2)
  end
  s.raised = now
end

-- Keeps what was learnt, or forgets it; returns whether a rate is still being learnt.
local function keep()
  if s.us > 0 and s.us < FREE_US then
    redis.call('DEL', learnt)
    return false
  end
  local fields = {}
  for _, name in ipairs(FIELDS) do
    fields[#fields + 1] = name
    fields[#fields + 1] = string.format('%.17g', s[name])
  end
  redis.call('HSET', learnt, unpack(fields))
  redis.call('EXPIRE', learnt, LEARNT_SECONDS)
  return true
end

local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local state = redis.call('HMGET', limit, 'r', 't')
local r, k = tonumber(state[1] or '0'), tonumber(state[2] or '0') + correction * token_us
local cool = now + math.max(0, redis.call('PTTL', cooldown)) * 1000
redis.call('ZADD', users, now, user)
redis.call('ZREMRANGEBYSCORE', users, '-inf', now - user_seconds * 1000000)
redis.call('EXPIRE', users, user_seconds)

local known = redis.call('HMGET', learnt, unpack(FIELDS))
local is_known = known[1] ~= false
local learning = is_known or refused > 0
local slow = nil
if learning then
  if is_known then
    for i, name in ipairs(FIELDS) do s[name] = tonumber(known[i]) end
  end
  s.n, s.x = s.n + sent, s.x + refused
  if refused > 0 and s.wave == 0 then s.wave = now end
  if s.wave > 0 and cool <= now and now - s.wave > WAVE_US then r = close_wave(now) end
  if request_us == 0 and s.us > 0 then
    raise(now, r)
    request_us, request_burst = s.us, s.b
  elseif request_us == 0 then
    slow = math.max(s.started, s.wave, cool)
  end
end
for i = 12, 11 + returned do
  if string.format('%.0f', r) == ARGV[i] then r = r - request_us end
end
learning = learning and keep()

local since = learning and string.format('%.0f', math.max(s.empty, s.wave)) or '-1'
local answer = {redis.call('ZCARD', users), string.format('%.0f', now), since}
for i = 12 + returned, #ARGV do
  local tokens, at = tonumber(ARGV[i]), cool
  if token_us > 0 then at = math.max(at, k - (token_burst - math.min(tokens, token_burst)) * token_us) end
  if slow then
    at = math.max(at, r)
    r = at + math.max(FREE_US, SLOW_US / 2 ^ math.max(0, (at - slow) / TWICE_AFTER_US))
  elseif request_us > 0 then
    at = math.max(at, r - (request_burst - 1) * request_us)
    r = math.max(r, at) + request_us
  end
  if token_us > 0 then k = math.max(k, at) + tokens * token_us end
  answer[#answer + 1] = string.format('%.0f', at)
  answer[#answer + 1] = string.format('%.0f', r)
end
redis.call('HSET', limit, 'r', string.format('%.17g', r), 't', string.format('%.17g', k))
redis.call('PEXPIRE', limit, math.ceil((math.max(r, k, now) - now) / 1000) + limit_seconds * 1000)
return answer
