-- KEYS keeper batches budget lines bills partly wake; ARGV token tag batch. The batch has ended; what it had reserved is
-- free, and chunks run again of which some questions wait for another batch.
local keeper, batches, budget, lines, bills, partly, wake = unpack(KEYS, 1, 7)
local token, tag, batch = unpack(ARGV, 1, 3)
if redis.call('GET', keeper) ~= token then return 0 end
if redis.call('EXISTS', lines, bills) > 0 then return 0 end
redis.call('HSET', batches, tag, batch)
for _, waiter in ipairs(redis.call('SMEMBERS', partly)) do free(waiter, wake) end
redis.call('DEL', partly)
redis.call('HDEL', budget, 'batch-' .. tag .. ':reserved', 'batch-' .. tag .. ':seen')
return 1
