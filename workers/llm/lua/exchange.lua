-- KEYS budget. ARGV process, its spending so far, what it has reserved, ms after which a silent process is dead,
-- amounts... Returns {limit, spent, decision...}; a decision is 1 granted, 0 wait, -1 never. Nano-dollars throughout.
-- What a dead process has reserved counts as spent for as long as it is silent. The first request is served first: after
-- one that waits all wait. A limit that is no amount is none that a call fits into.
local budget = unpack(KEYS, 1, 1)
local me, spent, reserved, silent_ms = unpack(ARGV, 1, 4)
local limit = redis.call('HGET', budget, 'limit')
if not limit then return {} end
local most = tonumber(limit)
if not most or not (most >= 0 and most < 9007199254740992) then limit = '0' end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local own = tonumber(reserved)
local told = tonumber(redis.call('HGET', budget, me .. ':spent') or '0')
redis.call('HINCRBY', budget, 'spent', string.format('%.0f', tonumber(spent) - told))
redis.call('HSET', budget, me .. ':spent', spent, me .. ':seen', now)
local certain, others = tonumber(redis.call('HGET', budget, 'spent')), 0
local fields = redis.call('HGETALL', budget)
for i = 1, #fields, 2 do
  local process = string.match(fields[i], '^(.*):reserved$')
  if process and process ~= me then
    local seen = tonumber(redis.call('HGET', budget, process .. ':seen') or '0')
    if now - seen > tonumber(silent_ms) then certain = certain + tonumber(fields[i + 1])
    else others = others + tonumber(fields[i + 1]) end
  end
end
local answer, waits = {limit, string.format('%.0f', certain)}, false
for i = 5, #ARGV do
  local amount = tonumber(ARGV[i])
  if certain + amount > tonumber(limit) then answer[#answer + 1] = -1
  elseif waits or certain + others + own + amount > tonumber(limit) then
    waits = true
    answer[#answer + 1] = 0
  else
    own = own + amount
    answer[#answer + 1] = 1
  end
end
if own > 0 then redis.call('HSET', budget, me .. ':reserved', string.format('%.0f', own))
else redis.call('HDEL', budget, me .. ':reserved') end
return answer
