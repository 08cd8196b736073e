-- KEYS: a job's hash, a key of that job, active jobs. ARGV: seconds to keep the key, job id.
local job, key, active = unpack(KEYS, 1, 3)
local seconds, job_id = unpack(ARGV, 1, 2)
if redis.call('TTL', key) ~= -1 or redis.call('SISMEMBER', active, job_id) == 1 then return 0 end
if redis.call('EXISTS', job) == 1 and redis.pcall('HGET', job, 'ended') ~= '1' then return 0 end
return redis.call('EXPIRE', key, seconds)
