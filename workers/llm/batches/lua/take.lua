-- KEYS keeper waiting lines shelves budget batches jobs; ARGV token shelf tag most most_bytes silent_ms job batch limits
-- of teams. Moves questions from a shelf into a batch, and reserves what they can cost. Returns {count, why no more,
-- what was refused, batch, then as `standing`}: 'full', or a decision below 1 (`funds.lua`). {-1} where another process keeps the batches.
local keeper, waiting, lines, shelves, budget, batches, jobs = unpack(KEYS, 1, 7)
local token, shelf, tag, most, most_bytes, silent_ms, job, new, limits = unpack(ARGV, 1, 9)
if redis.call('GET', keeper) ~= token then return {-1} end
local now, me = now_ms(), 'batch-' .. tag
local has_budget = redis.call('HEXISTS', budget, 'limit') == 1 or team_of(budget)
local funds = has_budget and funds_of(budget, job, me, now, tonumber(silent_ms), limits) or {}
local own = tonumber(redis.call('HGET', budget, me .. ':reserved') or '0')
local count, bytes, reserved, why, refused = 0, 0, 0, '', 0
while count < tonumber(most) do
  local key = redis.call('LINDEX', waiting, 0)
  if not key then break end
  local question = 'themes:batch:question:' .. key
  local worst, size, payer = unpack(redis.call('HMGET', question, 'worst', 'size', 'payer'))
  if payer then
    worst, size = tonumber(worst), tonumber(size)
    if bytes + size > tonumber(most_bytes) and count > 0 then why = 'full' break end
    local decided = decision(funds, own + reserved, worst)
    -- A batch keeps no lane while it waits for another.
    if decided < 1 then why, refused = decided < -10 and 0 or decided, worst break end
    redis.call('HSET', question, 'tag', tag)
    redis.call('HSET', lines, key, string.format('%.0f', worst) .. ' ' .. payer)
    count, bytes, reserved = count + 1, bytes + size, reserved + worst
  end
  redis.call('LPOP', waiting)
end
if count > 0 then redis.call('HINCRBY', shelves, shelf, -count) end
if redis.call('EXISTS', waiting) == 0 then redis.call('HDEL', shelves, shelf) end
-- It is no process that dies: what it has reserved comes back with its lines.
if has_budget and reserved > 0 then reserve(budget, job, me, own + reserved, NEVER_DIES) end
local batch = cjson.decode(redis.call('HGET', batches, tag) or new)
if count > 0 then
  batch.requests, batch.size_bytes = (batch.requests or 0) + count, (batch.size_bytes or 0) + bytes
  redis.call('HSET', batches, tag, cjson.encode(batch))
  -- A job that is asked again has had its end before.
  redis.call('PERSIST', batches)
  redis.call('SADD', jobs, job)
end
return {count, why, refused, cjson.encode(batch), unpack(standing(funds, now))}
