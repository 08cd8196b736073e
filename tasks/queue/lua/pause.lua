-- KEYS job budget events; ARGV reason limit time event message channel, job id, until; returns whether the job is
-- paused.
-- Every worker that has some of it is told. A limit that is no longer the one that was too small has been raised
-- meanwhile: then there is nothing to pause. A job that has left Redis needs no worker either.
local job, budget, events = unpack(KEYS, 1, 3)
local reason, too_small, at, event, message, channel, job_id, till = unpack(ARGV, 1, 8)
local state = redis.call('HGET', job, 'state')
if not state then return 1 end
if state == 'done' or state == 'cancelled' then return 0 end
local limit = redis.call('HGET', budget, 'limit')
local is_amount = not limit or tonumber(limit) and tonumber(limit) >= 0 and tonumber(limit) < 9007199254740992
if too_small ~= '' and is_amount and limit ~= too_small then return 0 end
-- A pause that would end by itself gives way to the user's, which does not.
if reason == 'user' and redis.call('HEXISTS', job, 'paused_until') == 1 then
  redis.call('HDEL', job, 'paused', 'paused_until')
end
if redis.call('HSETNX', job, 'paused', reason) == 1 then
  redis.call('HSET', job, 'paused_at', at, 'paused_message', message)
  if till ~= '' then redis.call('HSET', job, 'paused_until', till) end
  redis.call('PUBLISH', channel, job_id)
  if redis.call('EXISTS', events) == 1 then redis.call('XADD', events, '*', 'e', event) end
end
return 1
