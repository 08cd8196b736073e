-- KEYS keeper waiting lines shelves budget batches jobs; ARGV token shelf tag most most_bytes silent_ms job batch.
-- Moves questions from a shelf into a batch, and reserves what they can cost. Returns {count, why no more, limit, batch};
-- {-1} where another process keeps the batches.
local keeper, waiting, lines, shelves, budget, batches, jobs = unpack(KEYS, 1, 7)
local token, shelf, tag, most, most_bytes, silent_ms, job, new = unpack(ARGV, 1, 8)
if redis.call('GET', keeper) ~= token then return {-1} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local limit = redis.call('HGET', budget, 'limit')
local certain, others = tonumber(redis.call('HGET', budget, 'spent') or '0'), 0
local own = 'batch-' .. tag
local fields = limit and redis.call('HGETALL', budget) or {}
for i = 1, #fields, 2 do
  local process = string.match(fields[i], '^(.*):reserved$')
  if process then
    local seen = tonumber(redis.call('HGET', budget, process .. ':seen') or '0')
    if now - seen > tonumber(silent_ms) then certain = certain + tonumber(fields[i + 1])
    else others = others + tonumber(fields[i + 1]) end
  end
end
local count, bytes, reserved, why = 0, 0, 0, ''
while count < tonumber(most) do
  local key = redis.call('LINDEX', waiting, 0)
  if not key then break end
  local question = 'themes:batch:question:' .. key
  local worst, size, payer = unpack(redis.call('HMGET', question, 'worst', 'size', 'payer'))
  if payer then
    worst, size = tonumber(worst), tonumber(size)
    if bytes + size > tonumber(most_bytes) and count > 0 then why = 'full' break end
    if limit and certain + worst > tonumber(limit) then why = 'budget' break end
    if limit and certain + others + reserved + worst > tonumber(limit) then why = 'waits' break end
    redis.call('HSET', question, 'tag', tag)
    redis.call('HSET', lines, key, string.format('%.0f', worst) .. ' ' .. payer)
    count, bytes, reserved = count + 1, bytes + size, reserved + worst
  end
  redis.call('LPOP', waiting)
end
if count > 0 then redis.call('HINCRBY', shelves, shelf, -count) end
if redis.call('EXISTS', waiting) == 0 then redis.call('HDEL', shelves, shelf) end
if limit and reserved > 0 then
  redis.call('HINCRBY', budget, own .. ':reserved', string.format('%.0f', reserved))
  -- It is no process that dies: what it has reserved comes back with its lines.
  redis.call('HSET', budget, own .. ':seen', '9000000000000000')
end
local batch = cjson.decode(redis.call('HGET', batches, tag) or new)
if count > 0 then
  batch.requests, batch.size_bytes = (batch.requests or 0) + count, (batch.size_bytes or 0) + bytes
  redis.call('HSET', batches, tag, cjson.encode(batch))
  -- A job that is asked again has had its end before.
  redis.call('PERSIST', batches)
  redis.call('SADD', jobs, job)
end
return {count, why, limit or '', cjson.encode(batch)}
