-- KEYS limit users; ARGV change request_us request_burst token_us token_burst ahead limit_seconds. Slots that were
-- reserved at other limits are void: from now on the new limits hold, with nothing saved up. The first process that
-- reports a change makes it. Those that come later may have reserved at the old pace in between: what is further off
-- than all lines together reach at the new one is taken back.
local limit, users = unpack(KEYS, 1, 2)
local change = ARGV[1]
local request_us, request_burst, full = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[5]) * tonumber(ARGV[4])
local ahead, limit_seconds = tonumber(ARGV[6]), tonumber(ARGV[7])
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local state = redis.call('HMGET', limit, 'c', 'r', 't')
local r, k = now + (request_burst - 1) * request_us, now + full
if state[1] == change then
  r = math.min(tonumber(state[2] or '0'), r + redis.call('ZCARD', users) * ahead * request_us)
  k = math.min(tonumber(state[3] or '0'), k + full)
end
redis.call('HSET', limit, 'c', change, 'r', string.format('%.17g', r), 't', string.format('%.17g', k))
redis.call('PEXPIRE', limit, math.ceil((math.max(r, k, now) - now) / 1000) + limit_seconds * 1000)
return 1
