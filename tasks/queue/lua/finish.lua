-- KEYS chunks leases owners deliveries labels finished results; ARGV chunk destination size entry.
-- A reply that was lost may be asked for again: the second call changes nothing.
local chunks, leases, owners, deliveries, labels, finished, results = unpack(KEYS, 1, 7)
local chunk, destination, size, entry = unpack(ARGV, 1, 4)
if redis.call('HEXISTS', chunks, chunk) == 0 then return 0 end
if redis.call('SADD', finished, destination) == 0 then return 0 end
redis.call('XADD', results, '*', 'b', entry)
if redis.call('SCARD', finished) >= tonumber(size) then
  redis.call('HDEL', chunks, chunk)
  redis.call('ZREM', leases, chunk)
  for i = 3, 5 do redis.call('HDEL', KEYS[i], chunk) end
  redis.call('DEL', finished)
end
return 1
