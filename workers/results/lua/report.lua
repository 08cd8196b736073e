-- KEYS: hash, events, then what the job's work leaves behind, active jobs. ARGV: revision, state, whether events are
-- wanted, `job.started`, most events, job id, then the hash's fields and values. Consumers may report out of order: an
-- older revision changes nothing. Only the database may end a job that a user has cancelled in the hash, and a job
-- that a worker has begun does not wait again because no result of it is durable yet. A job that had ended and is asked
-- again is active again.
local job, events = unpack(KEYS, 1, 2)
local revision, state, is_announced, event, max_events, job_id = unpack(ARGV, 1, 6)
if redis.call('EXISTS', job) == 0 then return 0 end
local known = tonumber(redis.call('HGET', job, 'revision') or '0')
if known and known < 9007199254740992 and tonumber(revision) < known then return 0 end
local cancelled = redis.call('HGET', job, 'state') == 'cancelled'
local final = state == 'done' or state == 'cancelled'
local begun = state == 'queued' and redis.call('HGET', job, 'state') == 'running'
local fields = {}
for i = 7, #ARGV, 2 do
  local kept = cancelled and not final and (ARGV[i] == 'state' or ARGV[i] == 'finished_at')
  kept = kept or begun and (ARGV[i] == 'state' or ARGV[i] == 'started_at')
  if not kept then
    fields[#fields + 1] = ARGV[i]
    fields[#fields + 1] = ARGV[i + 1]
  end
end
if #fields > 0 then redis.call('HSET', job, unpack(fields)) end
if not final and redis.call('HGET', job, 'ended') == '1' then
  redis.call('HDEL', job, 'ended')
  for i = 1, 8 do redis.call('PERSIST', KEYS[i]) end
  redis.call('SADD', KEYS[9], job_id)
end
if is_announced == '1' and state ~= 'queued' then
  if redis.call('HGET', job, 'announced') ~= '1' or redis.call('EXISTS', events) == 0 then
    redis.call('HSET', job, 'announced', '1')
    redis.call('XADD', events, 'MAXLEN', '~', max_events, '*', 'e', event)
  end
end
return 1
