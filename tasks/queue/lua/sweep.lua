-- KEYS leases owners chunks job; returns {waiting, dead...}: chunks without a lease, and those whose lease has just
-- died. Of a paused job nothing waits: it is woken when it is resumed, or when its pause is over by itself.
local leases, owners, chunks, job = unpack(KEYS, 1, 4)
local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)

local dead = redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, 1000)
for _, chunk in ipairs(dead) do
  redis.call('ZREM', leases, chunk)
  redis.call('HDEL', owners, chunk)
end
local paused, till = unpack(redis.call('HMGET', job, 'paused', 'paused_until'))
if paused and till and now / 1000 >= tonumber(till) then
  redis.call('HDEL', job, 'paused', 'paused_at', 'paused_message', 'paused_until')
elseif paused then
  return {0}
end
table.insert(dead, 1, redis.call('HLEN', chunks) - redis.call('ZCARD', leases))
return dead
