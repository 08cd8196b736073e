-- KEYS chunks leases owners deliveries parked; ARGV chunk token until_ms payload. Returns 1: the chunk waits, without a
-- worker, for the answers that are its; 2: they have come meanwhile; 0: it is no longer ours.
local chunks, leases, owners, deliveries, parked = unpack(KEYS, 1, 5)
local chunk, token, until_ms, payload = unpack(ARGV, 1, 4)
if redis.call('HGET', owners, chunk) ~= token or redis.call('HEXISTS', chunks, chunk) == 0 then return 0 end
redis.call('HSET', chunks, chunk, payload)
redis.call('HINCRBY', deliveries, chunk, -1)
if redis.call('EXISTS', parked) == 0 then
  redis.call('ZREM', leases, chunk)
  redis.call('HDEL', owners, chunk)
  return 2
end
redis.call('ZADD', leases, until_ms, chunk)
redis.call('HSET', owners, chunk, 'batch')
return 1
