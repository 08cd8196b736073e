-- KEYS leases owners deliveries; ARGV chunk token.
local leases, owners, deliveries = unpack(KEYS, 1, 3)
local chunk, token = unpack(ARGV, 1, 2)
if redis.call('HGET', owners, chunk) ~= token then return 0 end
redis.call('ZREM', leases, chunk)
redis.call('HDEL', owners, chunk)
redis.call('HINCRBY', deliveries, chunk, -1)
return 1
