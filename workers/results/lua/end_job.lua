-- KEYS: hash, events, chunks, labels, leases, owners, deliveries, budget, active jobs, batches, webhooks, those due. ARGV: revision,
-- job id, whether events are wanted, last `job.progress`, `job.done`, most events, seconds to keep the job, seconds to
-- keep its events, id and body of the notice to be posted (empty: none). While a worker has yet to take its last chunk off, what that needs stays, and expires with the job.
local job, events = unpack(KEYS, 1, 2)
local revision, job_id, is_announced, progress, done, max_events, keep_seconds, events_seconds = unpack(ARGV, 1, 8)
local notice, body = unpack(ARGV, 9, 10)
if redis.call('EXISTS', job) == 0 then return 0 end
local known = tonumber(redis.call('HGET', job, 'revision') or '0')
if known and known < 9007199254740992 and tonumber(revision) < known then return 0 end
local is_new = redis.call('HGET', job, 'ended') ~= '1'
if is_new then
  redis.call('HSET', job, 'ended', '1')
  if is_announced == '1' then
    redis.call('XADD', events, 'MAXLEN', '~', max_events, '*', 'e', progress)
    redis.call('XADD', events, 'MAXLEN', '~', max_events, '*', 'e', done)
  end
end
redis.call('SREM', KEYS[9], job_id)
redis.call('EXPIRE', job, keep_seconds)
redis.call('EXPIRE', events, events_seconds)
redis.call('EXPIRE', KEYS[8], keep_seconds)
redis.call('EXPIRE', KEYS[10], keep_seconds)
for i = 3, 7 do
  if redis.call('EXISTS', KEYS[3]) == 0 then redis.call('DEL', KEYS[i])
  else redis.call('EXPIRE', KEYS[i], keep_seconds) end
end
-- Last: where something else stands under these keys, the job has ended all the same.
if is_new and notice ~= '' then
  redis.call('HSET', KEYS[11], notice, body)
  redis.call('ZADD', KEYS[12], 0, notice)
  -- Nobody posts them any more where the setting has gone: they are given up after 30 days at the latest.
  for i = 11, 12 do redis.call('EXPIRE', KEYS[i], 2678400) end
end
return 1
