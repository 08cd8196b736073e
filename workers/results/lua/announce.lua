-- KEYS: the job's hash, its events. ARGV: `job.started`, most events, seconds since 1970. Once a job, whoever comes
-- first. From here on it runs: the first durable result may be minutes away.
local job, events = unpack(KEYS, 1, 2)
local event, max_events, now = unpack(ARGV, 1, 3)
if redis.call('EXISTS', job) == 0 or redis.call('HSETNX', job, 'announced', '1') == 0 then return 0 end
if redis.call('HGET', job, 'state') == 'queued' then
  redis.call('HSET', job, 'state', 'running', 'started_at', now)
end
redis.call('XADD', events, 'MAXLEN', '~', max_events, '*', 'e', event)
return 1
