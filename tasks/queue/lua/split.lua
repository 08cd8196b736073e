-- KEYS chunks leases owners deliveries labels finished; ARGV chunk deaths, then name payload label of each new chunk.
-- What has happened to the chunk so far counts for each of them.
local chunks, leases, owners, deliveries, labels, finished = unpack(KEYS, 1, 6)
local chunk, deaths = unpack(ARGV, 1, 2)
if redis.call('HEXISTS', chunks, chunk) == 0 then return 0 end
for i = 3, #ARGV, 3 do
  redis.call('HSET', chunks, ARGV[i], ARGV[i + 1])
  redis.call('HSET', labels, ARGV[i], ARGV[i + 2])
  redis.call('HSET', deliveries, ARGV[i], deaths)
end
redis.call('HDEL', chunks, chunk)
redis.call('ZREM', leases, chunk)
for i = 3, 5 do redis.call('HDEL', KEYS[i], chunk) end
redis.call('DEL', finished)
return 1
