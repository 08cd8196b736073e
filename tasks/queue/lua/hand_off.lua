-- KEYS chunks leases owners deliveries labels finished; ARGV chunk token size new payload label destination...
-- Destinations without a start leave a chunk of ours for a new one; in the old one they count as finished.
local chunks, leases, owners, deliveries, labels, finished = unpack(KEYS, 1, 6)
local chunk, token, size, new, payload, label = unpack(ARGV, 1, 6)
if redis.call('HGET', owners, chunk) ~= token or redis.call('HEXISTS', chunks, chunk) == 0 then return 0 end
if redis.call('HEXISTS', chunks, new) == 1 then return 1 end
for i = 7, #ARGV do
  if redis.call('SISMEMBER', finished, ARGV[i]) == 1 then return 0 end
end
redis.call('HSET', chunks, new, payload)
redis.call('HSET', labels, new, label)
for i = 7, #ARGV do redis.call('SADD', finished, ARGV[i]) end
if redis.call('SCARD', finished) >= tonumber(size) then
  redis.call('HDEL', chunks, chunk)
  redis.call('ZREM', leases, chunk)
  for i = 3, 5 do redis.call('HDEL', KEYS[i], chunk) end
  redis.call('DEL', finished)
end
return 1
