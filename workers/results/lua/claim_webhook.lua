-- KEYS due bodies; ARGV ms for which a consumer has what it claims. Returns {id, body} of the notice that is due first.
local due, bodies = unpack(KEYS, 1, 2)
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, 100)) do
  local body = redis.call('HGET', bodies, id)
  if body then
    redis.call('ZADD', due, now + ARGV[1], id)
    return {id, body}
  end
  redis.call('ZREM', due, id)
end
return {}
