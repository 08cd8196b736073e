-- KEYS waiting shelves open wake; ARGV shelf end late_ms most. Ends questions that wait on a shelf; returns how many are
-- left there. `late`: they are asked otherwise; `gone`: whoever wants them asks anew.
local waiting, shelves, open, wake = unpack(KEYS, 1, 4)
local shelf, ending, late_ms, most = unpack(ARGV, 1, 4)
for _ = 1, tonumber(most) do
  local key = redis.call('LPOP', waiting)
  if not key then break end
  if redis.call('EXISTS', 'themes:batch:question:' .. key) == 1 then
    redis.call('HINCRBY', shelves, shelf, -1)
    if ending == 'late' then redis.call('SET', 'themes:batch:answer:' .. key, '', 'PX', late_ms) end
    ended(key, wake)
    redis.call('DECR', open)
  end
end
if redis.call('EXISTS', waiting) == 0 then redis.call('HDEL', shelves, shelf) end
return redis.call('LLEN', waiting)
