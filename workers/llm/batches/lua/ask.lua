-- KEYS parked shelves jobs open; ARGV job chunk most, then key cache shelf question payer late of each.
-- Returns for each what is known: {bytes}; {} where it waits, and the chunk with it; {'='} where the cache has it by
-- now; {'?'} where so many wait already that there is no room for it.
local parked, shelves, jobs, open = unpack(KEYS, 1, 4)
local job, chunk, most = unpack(ARGV, 1, 3)
local found = {}
for i = 4, #ARGV, 6 do
  local key, cache, shelf, packed, payer, late = unpack(ARGV, i, i + 5)
  local question, waiters = 'themes:batch:question:' .. key, 'themes:batch:waiters:' .. key
  local answer = redis.call('GET', 'themes:batch:answer:' .. key)
  local waits = redis.call('EXISTS', question) == 1
  if answer then
    found[#found + 1] = {answer}
  elseif not waits and cache ~= '' and redis.call('EXISTS', cache) == 1 then
    -- It was put there since its caller has looked.
    found[#found + 1] = {'='}
  elseif late == '1' and (not waits or redis.call('HGET', question, 'job') ~= job) then
    -- Its own job's batch is about to end; another's may take as long as it likes.
    redis.call('SREM', waiters, job .. ' ' .. chunk)
    redis.call('SREM', parked, key)
    found[#found + 1] = {''}
  elseif not waits and tonumber(redis.call('GET', open) or '0') >= tonumber(most) then
    found[#found + 1] = {'?'}
  else
    if not waits then
      redis.call('HSET', question, 'question', packed, 'job', job, 'shelf', shelf, 'payer', payer, 'tries', 0)
      redis.call('RPUSH', 'themes:job:' .. job .. ':batches:waiting:' .. shelf, key)
      redis.call('HINCRBY', shelves, shelf, 1)
      redis.call('SADD', jobs, job)
      redis.call('INCR', open)
    end
    redis.call('SADD', waiters, job .. ' ' .. chunk)
    redis.call('SADD', parked, key)
    found[#found + 1] = {}
  end
end
return found
