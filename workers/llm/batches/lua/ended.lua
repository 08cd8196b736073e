-- Shared by scripts that end questions: whoever waits for one is told, and a chunk that waits for nothing more is free.
local function free(waiter, wake)
  local job, chunk = string.match(waiter, '^(%S+) (.*)$')
  local owners = 'themes:job:' .. job .. ':owners'
  if redis.call('HGET', owners, chunk) == 'batch' then
    redis.call('HDEL', owners, chunk)
    redis.call('ZREM', 'themes:job:' .. job .. ':leases', chunk)
    redis.call('RPUSH', wake, waiter)
  end
end

local function ended(key, wake)
  local question, waiters = 'themes:batch:question:' .. key, 'themes:batch:waiters:' .. key
  for _, waiter in ipairs(redis.call('SMEMBERS', waiters)) do
    local job, chunk = string.match(waiter, '^(%S+) (.*)$')
    local parked = 'themes:job:' .. job .. ':parked:' .. chunk
    redis.call('SREM', parked, key)
    if redis.call('EXISTS', parked) == 0 then free(waiter, wake) end
  end
  redis.call('DEL', question, waiters)
end
