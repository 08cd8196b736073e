-- KEYS keeper batches jobs; ARGV token job tag batch. Returns 0 where another process keeps the batches.
local keeper, batches, jobs = unpack(KEYS, 1, 3)
local token, job, tag, batch = unpack(ARGV, 1, 4)
if redis.call('GET', keeper) ~= token then return 0 end
redis.call('HSET', batches, tag, batch)
redis.call('SADD', jobs, job)
return 1
