-- KEYS: jobs that are due. ARGV: job, the time that was read. One that has changed meanwhile stays due.
local waiting = unpack(KEYS, 1, 1)
local member, score = unpack(ARGV, 1, 2)
local at = tonumber(redis.call('ZSCORE', waiting, member) or '')
if at == tonumber(score) then return redis.call('ZREM', waiting, member) end
return 0
