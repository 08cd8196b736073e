-- KEYS due bodies job; ARGV id body field value. Adds a notice to be sent at once. With a job's `field` only where it
-- has not this value yet, so that each pause is told once; a job that has left Redis stays away.
local due, bodies, job = unpack(KEYS, 1, 3)
local id, body, field, value = unpack(ARGV, 1, 4)
if redis.call('EXISTS', job) == 0 or redis.call('HGET', job, field) == value then return 0 end
redis.call('HSET', job, field, value)
redis.call('HSET', bodies, id, body)
redis.call('ZADD', due, 0, id)
-- As in `end_job`.
for _, key in ipairs({due, bodies}) do redis.call('EXPIRE', key, 2678400) end
return 1
