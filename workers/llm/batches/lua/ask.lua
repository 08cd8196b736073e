-- KEYS parked shelves jobs open; ARGV job chunk most, then key cache shelf question worst size payer late of each.
-- Returns for each what is known: {bytes}; {} where it waits, and the chunk with it; {'='} where the cache has it by
-- now; {'?'} where so many wait already that there is no room for it.
local parked, shelves, jobs, open = unpack(KEYS, 1, 4)
local job, chunk, most = unpack(ARGV, 1, 3)
local waiter, found, added, new, wanted = job .. ' ' .. chunk, {}, {}, 0, {}
local waiting = tonumber(redis.call('GET', open) or '0')
for i = 4, #ARGV, 8 do
  local key, cache, shelf, packed, worst, size, payer, late = unpack(ARGV, i, i + 7)
  local question, waiters = 'themes:batch:question:' .. key, 'themes:batch:waiters:' .. key
  local answer = redis.call('GET', 'themes:batch:answer:' .. key)
  local waits = not answer and redis.call('EXISTS', question) == 1
  if answer then
    found[#found + 1] = {answer}
  elseif not waits and cache ~= '' and redis.call('EXISTS', cache) == 1 then
    -- It was put there since its caller has looked.
    found[#found + 1] = {'='}
  elseif late == '1' and (not waits or redis.call('HGET', question, 'job') ~= job) then
    -- Its own job's batch is about to end; another's may take as long as it likes.
    redis.call('SREM', waiters, waiter)
    redis.call('SREM', parked, key)
    found[#found + 1] = {''}
  elseif not waits and waiting + new >= tonumber(most) then
    found[#found + 1] = {'?'}
  else
    if not waits then
      redis.call('HSET', question, 'question', packed, 'worst', worst, 'size', size, 'job', job, 'shelf', shelf,
        'payer', payer, 'tries', 0)
      redis.call('RPUSH', 'themes:job:' .. job .. ':batches:waiting:' .. shelf, key)
      added[shelf] = (added[shelf] or 0) + 1
      new = new + 1
    end
    redis.call('SADD', waiters, waiter)
    wanted[#wanted + 1] = key
    found[#found + 1] = {}
  end
end
if #wanted > 0 then redis.call('SADD', parked, unpack(wanted)) end
if new > 0 then
  for shelf, count in pairs(added) do redis.call('HINCRBY', shelves, shelf, count) end
  redis.call('SADD', jobs, job)
  redis.call('INCRBY', open, new)
end
return found
