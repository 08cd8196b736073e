-- KEYS budget. ARGV job, process, its spending so far, what it has reserved, ms after which a silent process is dead,
-- limits of teams, amounts... Returns {now, limit, spent, of the team's day, of its month, decision...} (`funds.lua`);
-- nothing without a budget, an error and no change where its team cannot be read. The first request is served first:
-- after one that waits all wait.
local budget = unpack(KEYS, 1, 1)
local job, me, spent, reserved, silent_ms, limits = unpack(ARGV, 1, 6)
if redis.call('HEXISTS', budget, 'limit') == 0 and not team_of(budget) then return {} end
local wrong = unreadable_team(budget)
if wrong then return redis.error_reply('UNREADABLE ' .. wrong) end
local now, own = now_ms(), tonumber(reserved)
local told = tonumber(redis.call('HGET', budget, me .. ':spent') or '0')
spend(budget, tonumber(spent) - told, now)
redis.call('HSET', budget, me .. ':spent', spent, me .. ':seen', now)
local funds = funds_of(budget, job, me, now, tonumber(silent_ms), limits)
local answer, waits = standing(funds, now), false
for i = 7, #ARGV do
  local amount = tonumber(ARGV[i])
  local decided = decision(funds, own, amount)
  if waits and decided == 1 then decided = 0 end
  if decided == 0 then waits = true end
  if decided == 1 then own = own + amount end
  answer[#answer + 1] = decided
end
reserve(budget, job, me, own, now)
return answer
