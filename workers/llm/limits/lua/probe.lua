-- KEYS cooldown; ARGV probe-ms doublings. The right to make the next probe, for one caller of all processes; returns
-- {whether it is this one's, milliseconds that the cool-down lasts, milliseconds until the next probe}.
local cooldown = unpack(KEYS, 1, 1)
local probe_ms, max_doublings = unpack(ARGV, 1, 2)
local left = redis.call('PTTL', cooldown)
if left < 0 then return {0, 0, 0} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local at = tonumber(redis.call('HGET', cooldown, 'probe_at') or '0')
if now < at then return {0, left, at - now} end
local pause = probe_ms * 2 ^ math.min(redis.call('HINCRBY', cooldown, 'probes', 1), tonumber(max_doublings))
redis.call('HSET', cooldown, 'probe_at', now + pause)
return {1, left, math.floor(pause)}
