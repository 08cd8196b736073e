-- KEYS cooldown; ARGV milliseconds wait probe-ms is-last-word channel digest. Begins or extends a cool-down; with
-- `is-last-word` it may also become shorter. Returns the milliseconds that are left.
local cooldown = unpack(KEYS, 1, 1)
local milliseconds, wait, probe_ms, is_forced, channel, digest = unpack(ARGV, 1, 6)
local left = redis.call('PTTL', cooldown)
if left >= tonumber(milliseconds) and is_forced == '0' then return left end
if left < 0 then
  local t = redis.call('TIME')
  redis.call('HSET', cooldown, 'probes', 0, 'probe_at', t[1] * 1000 + math.floor(t[2] / 1000) + probe_ms)
end
redis.call('HSET', cooldown, 'wait', wait)
redis.call('PEXPIRE', cooldown, milliseconds)
redis.call('PUBLISH', channel, digest .. ' ' .. milliseconds .. ' ' .. wait)
return tonumber(milliseconds)
