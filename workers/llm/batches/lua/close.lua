-- KEYS keeper batches budget lines bills partly wake; ARGV token tag batch job. The batch has ended; what it had reserved is
-- free, and chunks run again of which some questions wait for another batch.
local keeper, batches, budget, lines, bills, partly, wake = unpack(KEYS, 1, 7)
local token, tag, batch, job = unpack(ARGV, 1, 4)
if redis.call('GET', keeper) ~= token then return 0 end
if redis.call('EXISTS', lines, bills) > 0 then return 0 end
local wrong = unreadable_team(budget)
if wrong then return redis.error_reply('UNREADABLE ' .. wrong) end
redis.call('HSET', batches, tag, batch)
for _, waiter in ipairs(redis.call('SMEMBERS', partly)) do free(waiter, wake) end
redis.call('DEL', partly)
reserve(budget, job, 'batch-' .. tag, 0, 0)
redis.call('HDEL', budget, 'batch-' .. tag .. ':seen')
return 1
